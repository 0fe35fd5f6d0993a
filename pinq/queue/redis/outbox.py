"""The outbox: a stream of events a queue, written by the scripts that end jobs.

A position is ``<stream id>:<queue>``. A stream's ids are made when a script runs, one after the
other, so no event with a smaller one can still appear.
"""

import heapq
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from pinq.queue.model import Event, StoredEvent
from pinq.queue.redis.server import RedisServer, packed, unpacked

# Made once: `json.dumps` with separators makes one every time.
_encoder = json.JSONEncoder(separators=(",", ":"))


def written(event: Event) -> bytes:
    """What ``announce`` takes, with an id that the event keeps at every delivery."""
    data = _encoder.encode(event.data)
    return packed((str(uuid.uuid4()), event.type, event.source, event.subject, data))


def unpublished(server: RedisServer, queues: Iterable[str], limit: int) -> list[StoredEvent]:
    """The oldest events of all queues, in the order in which they were stored."""
    found: list[list[tuple[tuple[int, ...], StoredEvent]]] = []
    for queue in queues:
        with server.translated():
            entries: Any = server.client.xrange(server.key_of(queue, "events"), count=limit)
        found.append([_stored(queue, name, fields) for name, fields in entries])
    merged = heapq.merge(*found, key=lambda one: one[0])
    return [event for _, event in merged][:limit]


def mark_published(server: RedisServer, positions: Sequence[int | str]) -> Iterable[str]:
    """Published events leave the outbox; the sinks have them. Returns whose those were."""
    by_queue: dict[str, list[str]] = {}
    for position in positions:
        name, _, queue = str(position).partition(":")
        by_queue.setdefault(queue, []).append(name)
    for queue, names in by_queue.items():
        with server.translated():
            server.client.xdel(server.key_of(queue, "events"), *names)
    return by_queue


def _stored(
    queue: str, name: bytes, fields: dict[bytes, bytes]
) -> tuple[tuple[int, ...], StoredEvent]:
    id_, type_, source, subject, data = unpacked(fields[b"event"])
    event = StoredEvent(
        position=f"{name.decode()}:{queue}",
        id=id_,
        type=type_,
        source=source,
        subject=subject,
        time_ms=int(fields[b"time_ms"]),
        data=data,
    )
    return tuple(map(int, name.split(b"-"))), event
