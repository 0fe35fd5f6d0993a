"""The gate before an open RocksDB: calls side by side, a reopening or closing alone.

Closing a RocksDB under a reader, or an iterator outliving it, is a crash of
the process, not an exception.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pinq.errors import StoreError


class Gate:
    """The gate of the store ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._inside = 0
        self._shut = False
        self._closed = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside with others.

        Raises:
            StoreError: the gate is closed for good.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._refuse_if_closed()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, and nobody else until this ends.

        Raises:
            StoreError: the gate is closed for good.
        """
        with self._shutting():
            self._refuse_if_closed()
            yield

    @contextmanager
    def closing(self) -> Iterator[bool]:
        """Alone, and nobody afterwards; yields false when it is closed already."""
        with self._shutting():
            yield not self._closed
            self._closed = True

    @contextmanager
    def _shutting(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._shut = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._inside)
            yield
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self._path} is closed")
