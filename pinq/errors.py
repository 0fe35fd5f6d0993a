"""Everything that pinq raises.

::

    PinqError
    ├── ConfigError             a setting is unknown, ill-typed or contradictory
    ├── InvalidInput            what a caller handed in cannot be used
    ├── StorageFull             no space left for the queue, the store or the events
    ├── ReadOnlyHome            the home, or a file in it, cannot be written
    ├── QueueError
    │   ├── QueueUnavailable    locked by somebody else, or not reachable
    │   ├── QueueDraining       it takes no more jobs
    │   └── SchemaMismatch      the database's version is not this code's
    ├── StoreError
    │   ├── StoreOwned          another process owns the RocksDB
    │   └── StoreCorrupt        the store's files are damaged
    ├── SinkError               a sink did not accept events
    ├── SignalError             a signal is unknown, or breaks its contract
    │   └── DeviceLost          the GPU can compute nothing more in this process
    └── MediaError              an image cannot be had; carries its failure class

A message says what happened, to which thing, and what to do next. Library
code raises these; only the command line turns them into text.
"""

from enum import StrEnum


class FailureClass(StrEnum):
    """Why an attempt failed. Permanent ones go straight to ``dead``."""

    FETCH_TRANSIENT = "fetch_transient"
    FETCH_GONE = "fetch_gone"
    REFUSED = "refused"
    UNDECODABLE = "undecodable"
    MODEL_ERROR = "model_error"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_CRASH = "worker_crash"
    SIGNATURE_MISMATCH = "signature_mismatch"
    CANCELLED = "cancelled"
    ACTOR_ERROR = "actor_error"

    @property
    def permanent(self) -> bool:
        return self in _PERMANENT


_PERMANENT = frozenset(
    {
        FailureClass.FETCH_GONE,
        FailureClass.REFUSED,
        FailureClass.UNDECODABLE,
        FailureClass.SIGNATURE_MISMATCH,
        FailureClass.CANCELLED,
    }
)


class PinqError(Exception):
    """The root of pinq's exceptions."""


class ConfigError(PinqError):
    """A setting is unknown, ill-typed or contradictory."""


class InvalidInput(PinqError):
    """What a caller handed in cannot be used."""


class StorageFull(PinqError):
    """No space is left for the queue, the store or the events."""


class ReadOnlyHome(PinqError):
    """The home, or a file in it, cannot be written."""


class QueueError(PinqError):
    """The queue could not do what was asked."""


class QueueUnavailable(QueueError):
    """The queue is locked by somebody else, or cannot be reached."""


class QueueDraining(QueueError):
    """The queue was told to take no more jobs."""


class SchemaMismatch(QueueError):
    """The database was made by another version of pinq."""


class StoreError(PinqError):
    """The store could not do what was asked."""


class StoreOwned(StoreError):
    """Another process owns the RocksDB."""


class StoreCorrupt(StoreError):
    """The store's files are damaged."""


class SinkError(PinqError):
    """A sink did not accept events; they stay in the outbox."""


class SignalError(PinqError):
    """A signal is unknown, or breaks its contract."""


class DeviceLost(SignalError):
    """The GPU's context is broken: nothing more can be computed in this process.

    A failed kernel (a device-side assert, an illegal access) poisons every later
    call, so the culprit cannot be looked for here. End the process; what it had
    leased comes back when its leases expire, and is leased alone.
    """


class MediaError(PinqError):
    """An image cannot be had."""

    def __init__(self, failure_class: FailureClass, message: str) -> None:
        super().__init__(message)
        self.failure_class = failure_class
