"""How a signal lies in the store: bytes of its key, bytes of its value.

Key: ``galaxy NUL signal NUL version(u32, big-endian) signature``. So one version of
one signal of a galaxy is a contiguous range, in order of signature.

Value: a msgpack map ``{t: computed_at ms, d: dtype, s: shape, b: bytes, m: {…}}``.
A reader ignores entries it doesn't know.
"""

from typing import Any

import msgpack  # type: ignore[import-untyped]

from pinq.errors import InvalidInput, StoreCorrupt
from pinq.store.contract import SignalKey, SignalValue

_VERSION_BYTES = 4
_MAX_VERSION = 2**32 - 1


def encode_key(key: SignalKey) -> bytes:
    """The bytes of a key.

    Raises:
        InvalidInput: a name is empty or holds a NUL, or the version is no u32.
    """
    if not 0 <= key.version <= _MAX_VERSION:
        raise InvalidInput(f"{key}: a version is 0 to {_MAX_VERSION}")
    if not key.signature or "\0" in key.signature:
        raise InvalidInput(f"{key}: a signature is not empty and holds no NUL")
    return version_prefix(key.galaxy, key.signal, key.version) + key.signature.encode()


def decode_key(raw: bytes) -> SignalKey:
    """The key of those bytes.

    Raises:
        StoreCorrupt: they are not a key.
    """
    try:
        galaxy, signal, rest = raw.split(b"\0", 2)
        version, signature = rest[:_VERSION_BYTES], rest[_VERSION_BYTES:]
        if not (galaxy and signal and signature):
            raise ValueError
        return SignalKey(
            galaxy.decode(), signal.decode(), int.from_bytes(version, "big"), signature.decode()
        )
    except ValueError:
        raise StoreCorrupt(
            f"the store holds a key that pinq did not write: {raw[:200]!r}"
        ) from None


def galaxy_prefix(galaxy: str) -> bytes:
    """What every key of a galaxy starts with.

    Raises:
        InvalidInput: the name is empty or holds a NUL.
    """
    return _name(galaxy, "galaxy") + b"\0"


def version_prefix(galaxy: str, signal: str, version: int) -> bytes:
    """What every key of one version of one signal starts with.

    Raises:
        InvalidInput: a name is empty or holds a NUL.
    """
    return (
        galaxy_prefix(galaxy)
        + _name(signal, "signal")
        + b"\0"
        + version.to_bytes(_VERSION_BYTES, "big")
    )


def after(prefix: bytes) -> bytes:
    """The least key greater than all that start with ``prefix``."""
    # A prefix holds a name, so it is never all 0xFF and the sum never overflows.
    return (int.from_bytes(prefix, "big") + 1).to_bytes(len(prefix), "big")


def encode_value(value: SignalValue) -> bytes:
    """The bytes of a value.

    Raises:
        InvalidInput: ``meta`` holds something that msgpack cannot carry.
    """
    try:
        packed: bytes = msgpack.packb(
            {
                "t": value.computed_at_ms,
                "d": value.dtype,
                "s": list(value.shape),
                "b": value.data,
                "m": dict(value.meta),
            }
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"a signal's value cannot be stored: {error}") from None
    return packed


def decode_value(key: SignalKey, raw: bytes) -> SignalValue:
    """The value of those bytes; ``key`` is named when they are damaged.

    Raises:
        StoreCorrupt: they are not a value.
    """
    try:
        fields: Any = msgpack.unpackb(raw, strict_map_key=False)
        time, dtype, shape = fields["t"], fields["d"], fields["s"]
        data, meta = fields["b"], fields["m"]
        if not (
            type(time) is int
            and type(dtype) is str
            and type(data) is bytes
            and type(meta) is dict
            and all(type(extent) is int for extent in shape)
        ):
            raise ValueError("a field has the wrong type")
        return SignalValue(dtype, tuple(shape), data, time, meta)
    except (ValueError, KeyError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise StoreCorrupt(
            f"the value of {key.signal}@{key.version} for {key.signature} in galaxy "
            f"{key.galaxy} is damaged ({error!r}); enqueue the image again with "
            "`pinq enqueue --force` to compute it anew"
        ) from None


def _name(name: str, what: str) -> bytes:
    if not name or "\0" in name:
        raise InvalidInput(f"{name!r}: a {what}'s name is not empty and holds no NUL")
    return name.encode()
