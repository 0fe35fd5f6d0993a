"""An item on its way to becoming a job, or what is wrong with it."""

import re
from dataclasses import dataclass
from typing import Any

from pinq.queue.model import NewJob

SIGNATURE = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class Item:
    """Something to enqueue: a path or URI (``source``), or a signature, or both.

    ``origin`` says where it was read, such as ``list.csv:12``.
    """

    source: str
    signature: str | None = None
    origin: str = ""


@dataclass(frozen=True, slots=True)
class BadItem:
    """Something that cannot be enqueued, and why."""

    source: str
    reason: str
    origin: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.origin, self.source, self.reason) if part)


@dataclass(frozen=True, slots=True)
class Signed:
    """The identity of a file's bytes, and what a cheap look at the file said then."""

    signature: str
    etag: str


@dataclass(frozen=True, slots=True)
class Ready:
    """An item with everything a job needs; fields as in :class:`~pinq.queue.model.NewJob`."""

    signature: str
    uri: str
    verify: bool = False
    etag: str = ""

    def job(self, *, priority: int, max_attempts: int, run_at_ms: int = 0) -> NewJob:
        return NewJob(
            key=self.signature,
            uri=self.uri,
            verify=self.verify,
            etag=self.etag,
            priority=priority,
            run_at_ms=run_at_ms,
            max_attempts=max_attempts,
        )


def item_of(record: Any, origin: str = "") -> Item | str:
    """The item that a mapping with ``uri`` and ``signature`` describes, or what is wrong."""
    if not isinstance(record, dict):
        return 'is not an object like {"uri": …, "signature": …}'
    uri, signature = record.get("uri"), record.get("signature")
    if uri is not None and not isinstance(uri, str):
        return "uri is not a string"
    if signature is not None and not isinstance(signature, str):
        return "signature is not a string"
    if not uri and not signature:
        return "has neither uri nor signature"
    return Item(uri or "", signature or None, origin)


def words(error: OSError) -> str:
    """An error of the system, as a reason."""
    return (error.strerror or str(error)).lower()
