"""What a signal store owes.

A store maps (galaxy, signal, version, signature) to a :class:`SignalValue`.
Writing the same key twice leaves the later value; pinq only ever writes the
same value again, so a repeated put is harmless.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class SignalKey:
    """Where one value stands."""

    galaxy: str
    signal: str
    version: int
    signature: str


@dataclass(frozen=True, slots=True)
class SignalValue:
    """One computed signal of one image.

    ``data`` holds the values of ``shape`` in C order, little-endian, as
    ``dtype`` (numpy's name). ``meta`` holds the few scalars beside it.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    computed_at_ms: int
    meta: Mapping[str, Any] = field(default_factory=dict)


class Store(Protocol):
    """A store of signals; safe to use from several threads."""

    def get(self, keys: Sequence[SignalKey]) -> list[SignalValue | None]:
        """The value of each key, in order; ``None`` where there is none."""

    def put(self, items: Sequence[tuple[SignalKey, SignalValue]]) -> None:
        """Write all items. When this returns they survive a power cut.

        Raises:
            StorageFull: no space is left; nothing is promised about the items.
            StoreError: the store cannot be written.
        """

    def versions(self, galaxy: str) -> list[tuple[str, int]]:
        """Every (signal, version) that has at least one value, ascending."""

    def lookup(
        self, galaxy: str, signatures: Sequence[str], signals: Sequence[str] | None = None
    ) -> list[dict[str, tuple[int, SignalValue]]]:
        """For each signature the newest version stored of each signal, by name.

        ``signals`` limits the answer to those names.
        """

    def scan(self, galaxy: str) -> Iterator[tuple[SignalKey, SignalValue]]:
        """Everything in a galaxy, in key order."""

    def close(self) -> None:
        """Give up the store; safe to call twice."""
