"""What is asked of an open RocksDB: values, versions, the newest, a chunk of a scan."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from rocksdict import Rdict

from pinq.store import keys
from pinq.store.contract import SignalKey, SignalValue

SCAN_ROWS = 512
SCAN_BYTES = 4 * 1024 * 1024


def values(db: Rdict, raw_keys: Sequence[bytes]) -> list[bytes | None]:
    """The raw value of each key, in order; ``None`` where there is none."""
    asked: list[Any] = [*raw_keys]
    found: list[bytes | None] = db.get(asked)  # type: ignore[assignment]
    return found


def versions(db: Rdict, galaxy: str) -> list[tuple[str, int]]:
    """Every (signal, version) of the galaxy, ascending: a seek for each."""
    prefix = keys.galaxy_prefix(galaxy)
    found = []
    rows = db.iter()
    rows.seek(prefix)
    while rows.valid():
        raw = rows.key()
        if not raw.startswith(prefix):
            break
        key = keys.decode_key(raw)
        found.append((key.signal, key.version))
        rows.seek(keys.after(keys.version_prefix(galaxy, key.signal, key.version)))
    rows.status()  # an iterator that meets damage just ends
    return found


def newest(
    db: Rdict, galaxy: str, signatures: Sequence[str], signals: Collection[str] | None
) -> list[dict[str, tuple[int, SignalValue]]]:
    """For each signature the newest version of each signal, or of those in ``signals``."""
    stored: dict[str, list[int]] = defaultdict(list)
    for signal, version in reversed(versions(db, galaxy)):
        if signals is None or signal in signals:
            stored[signal].append(version)
    answers: list[dict[str, tuple[int, SignalValue]]] = [{} for _ in signatures]
    # The newest of every signal in one multi-get; older ones only for what
    # that didn't find.
    for age in range(max(map(len, stored.values()), default=0)):
        wanted = [
            (answer, SignalKey(galaxy, signal, stored[signal][age], signature))
            for signature, answer in zip(signatures, answers, strict=True)
            for signal in sorted(stored)
            if age < len(stored[signal]) and signal not in answer
        ]
        if not wanted:
            break
        found = values(db, [keys.encode_key(key) for _, key in wanted])
        for (answer, key), raw in zip(wanted, found, strict=True):
            if raw is not None:
                answer[key.signal] = (key.version, keys.decode_value(key, raw))
    return answers


def chunk(db: Rdict, prefix: bytes, start: bytes) -> list[tuple[bytes, bytes]]:
    """The next rows from ``start`` on whose keys begin with ``prefix``; empty at the end."""
    found: list[tuple[bytes, bytes]] = []
    size = 0
    rows = db.iter()
    rows.seek(start)
    while rows.valid() and len(found) < SCAN_ROWS and size < SCAN_BYTES:
        key = rows.key()
        if not key.startswith(prefix):
            break
        value = rows.value()
        found.append((key, value))
        size += len(value)
        rows.next()
    rows.status()  # an iterator that meets damage just ends
    return found
