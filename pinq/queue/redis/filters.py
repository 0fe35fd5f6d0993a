"""A ``Filter`` as ``choosing.lua`` reads it."""

from typing import Any

from pinq.queue.model import Filter, State

STATES = (State.PENDING, State.LEASED, State.SUCCEEDED, State.DEAD)
"""States by the number that Redis keeps."""

# One character of UTF-8, and one byte, as patterns of Lua.
_CHARACTER = b"[^\x80-\xbf][\x80-\xbf]*"
_BYTE = b"."


def is_empty(wanted: Filter) -> bool:
    """Whether the filter can mean no job at all."""
    lists = (wanted.keys, wanted.states, wanted.priorities)
    return any(given is not None and not given for given in lists)


def as_arguments(wanted: Filter) -> dict[str, Any]:
    """All but the queue and the keys, which are resolved before."""
    found: dict[str, Any] = {}
    if wanted.states is not None:
        found["states"] = [STATES.index(state) for state in wanted.states]
    if wanted.priorities is not None:
        found["priorities"] = list(wanted.priorities)
    if wanted.error_class is not None:
        found["error"] = wanted.error_class
    if wanted.uri is not None:
        found["uri"] = pieces(wanted.uri.encode("utf-8", "surrogatepass"), _CHARACTER)
    if wanted.body is not None:
        found["body"] = pieces(wanted.body, _BYTE)
    if wanted.scheduled is not None:
        found["scheduled"] = wanted.scheduled
    return found


def pieces(pattern: bytes, one: bytes = _BYTE) -> list[bytes]:
    """A pattern as Lua patterns that must follow one another, the first and the last at the ends.

    Each piece is of a fixed length in characters, so finding one after the other takes no
    backtracking, which in Lua's own ``.*`` a user's pattern could let run for ever.
    """
    found = [
        b"".join(one if byte == 0x3F else _literal(byte) for byte in piece)
        for piece in pattern.split(b"*")
    ]
    found[0] = b"^" + found[0]
    found[-1] += b"$"
    return found


def _literal(byte: int) -> bytes:
    if byte == 0:
        return b"%z"
    character = bytes([byte])
    return character if character.isalnum() or byte >= 0x80 else b"%" + character
