"""What this process holds of the queue: leases are renewed until they are answered."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from pinq.broker.connection import Connection
from pinq.errors import PinqError
from pinq.patience import patiently
from pinq.queue.contract import Queue
from pinq.queue.model import LeasedJob

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Held(Protocol):
    """A lease in hand. ``lost``: it could not be renewed, and what is answered is refused."""

    token: str
    lost: bool

    @property
    def jobs(self) -> Sequence[LeasedJob]: ...


class Holding:
    """The leases of this process, the thread that renews them, and how troubles are met.

    Args:
        lease_seconds: how long a lease lasts unless renewed; it is renewed every third of that.
        patience_seconds: how long a full disk or an unreachable queue is waited for.
        on_fatal: told of an error that the worker should end with.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        lease_seconds: float,
        patience_seconds: float,
        on_fatal: Callable[[PinqError], None] | None,
    ) -> None:
        self._connection = connection
        self.lease_seconds = lease_seconds
        self.patience_seconds = patience_seconds
        self._on_fatal = on_fatal
        self.stopping = threading.Event()
        self.closed = threading.Event()
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._heartbeat: threading.Thread | None = None

    @property
    def queue(self) -> Queue:
        return self._connection.queue

    @property
    def worker(self) -> str:
        return self._connection.worker

    def start(self) -> None:
        """Begin renewing; leasing may begin too, also after an earlier stop."""
        self.stopping.clear()
        self.closed.clear()
        if self._heartbeat is None:
            self._heartbeat = threading.Thread(
                target=self._renew, name="pinq-heartbeat", daemon=True
            )
            self._heartbeat.start()

    def close(self) -> None:
        """End the heartbeat."""
        self.closed.set()
        if self._heartbeat is not None:
            self._heartbeat.join()
            self._heartbeat = None

    def add(self, held: Held) -> None:
        """Renew this lease from now on."""
        with self._lock:
            self._held[held.token] = held

    def remove(self, token: str) -> bool:
        """All of it is answered or given back; false if that was known."""
        with self._lock:
            return self._held.pop(token, None) is not None

    def patiently(self, verb: Callable[[], T]) -> T | None:
        """Call a verb, waiting out a full disk or an unreachable queue.

        An error that stays is fatal: it is reported and ``None`` is returned; what
        the worker holds is taken back when its leases expire.
        """
        try:
            return patiently(verb, patience_seconds=self.patience_seconds, stop=self.closed)
        except PinqError as error:
            self.fail(error)
            return None

    def fail(self, error: PinqError) -> None:
        """Report an error that no job is to blame for, and lease nothing more."""
        self.stopping.set()
        logger.error("worker.failed error=%s", error)
        if self._on_fatal is not None:
            self._on_fatal(error)

    def _renew(self) -> None:
        while not self.closed.wait(self.lease_seconds / 3):
            with self._lock:
                held = [lease for lease in self._held.values() if not lease.lost]
            for lease in held:
                try:
                    if self.queue.renew(lease.token, self.lease_seconds):
                        continue
                except PinqError as error:
                    logger.warning("lease.renew_failed token=%s error=%s", lease.token, error)
                    continue
                with self._lock:
                    lease.lost = lease.token in self._held  # else just answered
                if lease.lost:
                    logger.warning("lease.lost token=%s jobs=%d", lease.token, len(lease.jobs))
