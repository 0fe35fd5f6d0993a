"""The store in a RocksDB folder.

One process owns a RocksDB and writes it (``write=True``, :mod:`~pinq.store.writer`).
Any number read beside it (``write=False``, :mod:`~pinq.store.follower`) and write
nothing into the folder, so that it works on a read-only home. A folder that
isn't there yet reads as empty.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from pinq.store import keys, queries
from pinq.store.contract import SignalKey, SignalValue
from pinq.store.follower import Follower
from pinq.store.writer import Writer


class RocksdbStore:
    """A :class:`~pinq.store.contract.Store` in the folder ``path``.

    Args:
        path: the RocksDB's folder; with ``write`` it is made if need be.
        write: own the store, rather than read it, beside its owner if it has one.

    Raises:
        StoreOwned: another process, or another object of this one, owns it.
        StoreCorrupt: its files are damaged.
        ReadOnlyHome: ``write`` was asked and the folder cannot be written.
        StorageFull: there is no space to open it.
    """

    def __init__(self, path: str | Path, *, write: bool) -> None:
        # RocksDB's lock is by name within a process, and taking it twice loses
        # it: so only ever one name for one folder.
        self.path = Path(os.path.realpath(path))
        self._folder = Writer(self.path) if write else Follower(self.path)

    def get(self, wanted: Sequence[SignalKey]) -> list[SignalValue | None]:
        """The value of each key, in order; ``None`` where there is none.

        Raises:
            StoreCorrupt: the store's files, or one of the values, are damaged.
        """
        if not wanted:
            return []
        raw_keys = [keys.encode_key(key) for key in wanted]
        nothing: list[bytes | None] = [None] * len(wanted)
        found = self._folder.read(partial(queries.values, raw_keys=raw_keys), nothing)
        return [
            None if raw is None else keys.decode_value(key, raw)
            for key, raw in zip(wanted, found, strict=True)
        ]

    def put(self, items: Sequence[tuple[SignalKey, SignalValue]]) -> None:
        """Write all items, or none. When this returns they survive a power cut.

        After :class:`StorageFull` the store goes on reading, and the first put
        once there is space works again.

        Raises:
            StorageFull: no space is left; nothing is promised about the items.
            ReadOnlyHome: the folder has become read-only.
            StoreCorrupt: the store's files are damaged.
            StoreError: the store was opened to read, or is closed.
        """
        self._folder.put([(keys.encode_key(key), keys.encode_value(value)) for key, value in items])

    def versions(self, galaxy: str) -> list[tuple[str, int]]:
        """Every (signal, version) that has at least one value, ascending.

        Takes a seek for each, however many values there are.
        """
        return self._folder.read(partial(queries.versions, galaxy=galaxy), [])

    def lookup(
        self, galaxy: str, signatures: Sequence[str], signals: Sequence[str] | None = None
    ) -> list[dict[str, tuple[int, SignalValue]]]:
        """For each signature the newest version stored of each signal, by name.

        ``signals`` limits the answer to those names.
        """
        return self._folder.read(
            lambda db: queries.newest(db, galaxy, signatures, signals), [{} for _ in signatures]
        )

    def scan(self, galaxy: str) -> Iterator[tuple[SignalKey, SignalValue]]:
        """Everything in a galaxy, in key order.

        Read in chunks, each as new as its own moment: not a snapshot, and no
        hindrance to writes or to ``close``.
        """
        prefix = start = keys.galaxy_prefix(galaxy)
        nothing: list[tuple[bytes, bytes]] = []
        while rows := self._folder.read(
            partial(queries.chunk, prefix=prefix, start=start), nothing
        ):
            for raw_key, raw_value in rows:
                key = keys.decode_key(raw_key)
                yield key, keys.decode_value(key, raw_value)
            start = rows[-1][0] + b"\0"

    def close(self) -> None:
        """Give up the store, once calls under way have ended; safe to call twice."""
        self._folder.close()
