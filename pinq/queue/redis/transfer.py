"""Moving a queue out of Redis, and into it: ``pinq.queue.transfer`` by scripts.

A hash of its own keeps the notes (``<prefix>:move``); what a queue was told before it was frozen,
and the leases that its jobs were parted from, stand with the queue (``moving.lua``). Jobs keep
their order of arrival as their id; ids that are made later are larger. Events that come from
elsewhere have no queue here: they get a stream of their own, in which they keep their order.
"""

import heapq
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import msgpack  # type: ignore[import-untyped]

from pinq.errors import InvalidInput
from pinq.queue.model import Controls, State, StoredEvent
from pinq.queue.redis.filters import STATES
from pinq.queue.redis.operating import batched, error_of, text
from pinq.queue.redis.queue import RedisQueue
from pinq.queue.redis.server import packed, unpacked
from pinq.queue.transfer import Arrival, Departure, JobRecord, LeaseRecord, QueueRecord

# Jobs, or events, of one script or transaction: others wait no longer than it takes.
_BATCH = 500
# The queue, by name, whose stream has the events; there need not be one.
_EVENTS = "moved"


class RedisTransfer:
    """:class:`pinq.queue.transfer.Transferable` on Redis."""

    def __init__(self, queue: RedisQueue) -> None:
        self.queue = queue
        self._server = queue._server
        self._client = queue._server.client
        self._notes = f"{self._server.prefix}:move"

    @property
    def address(self) -> str:
        prefix = self._server.prefix
        return self._server.address + ("" if prefix == "pinq" else f"?prefix={prefix}")

    def _run(self, name: str, queue: str, *arguments: Any) -> Any:
        return self._server.run(name, self._server.key(queue), *arguments)

    def _note(self, side: str) -> dict[str, Any] | None:
        with self._server.translated():
            note: Any = self._client.hget(self._notes, side)
        return json.loads(note) if note else None

    def _write(self, side: str, note: dict[str, Any]) -> None:
        with self._server.translated():
            self._client.hset(self._notes, side, json.dumps(note))

    # --- a source -------------------------------------------------------------

    def departure(self) -> Departure | None:
        note = self._note("from")
        return Departure(**note) if note else None

    def freeze(self, departure: Departure) -> None:
        if self._note("from") is None:
            self._write("from", asdict(departure))
        for name in self.queue.queues():
            self._run("freeze", name, False)

    def frozen(self) -> Mapping[str, bool]:
        found = {}
        for name in self.queue.queues():
            with self._server.translated():
                known = self._client.exists(self._server.key_of(name, "moving"))
            if known:
                now = self.queue.controls(name)
                found[name] = now.paused and now.draining
        return found

    def thaw(self) -> None:
        for name in self.queue.queues():
            self._hold(name, self._parted(name))
            self._run("thaw", name)
        with self._server.translated():
            self._client.hdel(self._notes, "from")

    def depart(self) -> None:
        self._write("from", {**(self._note("from") or {}), "gone": True})

    def queue_records(self) -> Sequence[QueueRecord]:
        records = []
        for name in self.queue.queues():
            with self._server.translated():
                row: Any = self._client.hgetall(self._server.key(name))
                told: Any = self._client.hgetall(self._server.key_of(name, "moving"))
            row |= told
            controls = Controls(
                paused=row[b"paused"] == b"1",
                draining=row[b"draining"] == b"1",
                rate=float(row[b"rate"]) if row[b"rate"] else None,
                in_flight=int(row[b"in_flight"]) if row[b"in_flight"] else None,
            )
            records.append(
                QueueRecord(
                    name=name,
                    source=text(row[b"source"]),
                    signals=text(row[b"signals"]),
                    generation=int(row[b"generation"]),
                    controls=controls,
                    allowance=float(row[b"allowance"]),
                    allowance_at_ms=int(row[b"allowance_at_ms"]),
                )
            )
        return records

    def job_records(self, after: str, page: int) -> Iterator[JobRecord]:
        arrival, last_queue = _split(after)
        ways = [
            # Of a queue up to the last one's, a job of that very arrival has been seen.
            self._jobs(name, arrival if name <= last_queue else arrival - 1, page)
            for name in self.queue.queues()
        ]
        return heapq.merge(*ways, key=lambda record: (record.arrival, record.queue))

    def _jobs(self, queue: str, after: int, page: int) -> Iterator[JobRecord]:
        limit = min(page, _BATCH)
        while True:
            rows = self._run("records", queue, f"{max(after, 0):016}", limit)
            for row in rows:
                yield _job(queue, row)
            if len(rows) < limit:
                return
            after = int(rows[-1][0])

    def lease_records(self) -> Sequence[LeaseRecord]:
        found = []
        for name in self.queue.queues():
            found += self._parted(name)
            found += [_lease(name, row) for row in self._run("freeze", name, True)]
        return found

    def _parted(self, queue: str) -> list[LeaseRecord]:
        with self._server.translated():
            rows: Any = self._client.lrange(self._server.key_of(queue, "moving:leases"), 0, -1)
        return [_lease(queue, msgpack.unpackb(row, raw=True)) for row in rows]

    def event_records(self, after: str, page: int) -> Iterator[StoredEvent]:
        stamp, _, last_queue = after.partition(":")
        ways = [self._events(name, stamp, name <= last_queue, page) for name in self.queue._names()]
        return heapq.merge(*ways, key=lambda event: (_stamp(event), event.position))

    def _events(self, queue: str, stamp: str, seen: bool, page: int) -> Iterator[StoredEvent]:
        start = f"{'(' if seen else ''}{stamp}" if stamp else "-"
        while True:
            with self._server.translated():
                key = self._server.key_of(queue, "events")
                entries: Any = self._client.xrange(key, start, "+", page)
            for name, fields in entries:
                id_, type_, source, subject, data = unpacked(fields[b"event"])
                place = f"{name.decode()}:{queue}"
                at_ms = int(fields[b"time_ms"])
                yield StoredEvent(place, id_, type_, source, subject, at_ms, data)
            if len(entries) < page:
                return
            start = f"({entries[-1][0].decode()}"

    def event_count(self) -> int:
        with self._server.translated():
            keys = [self._server.key_of(name, "events") for name in self.queue._names()]
            lengths: list[Any] = [self._client.xlen(key) for key in keys]
        return sum(lengths)

    # --- a target -------------------------------------------------------------

    def arrival(self) -> Arrival | None:
        note = self._note("to")
        if note is None:
            return None
        with self._server.translated():
            jobs_after: Any = self._client.hget(self._notes, "jobs_after")
            events_after: Any = self._client.get(self._server.key_of(_EVENTS, "adopted"))
        return replace(
            Arrival(**note),
            jobs_after=text(jobs_after or b""),
            events_after=text(events_after or b""),
        )

    def expect(self, arrival: Arrival, records: Sequence[QueueRecord]) -> None:
        known = self._note("to")
        if known is None or known["id"] != arrival.id:
            self.forget_arrival()
            self._write("to", asdict(arrival))
        for record in records:
            self.queue._register(record.name)
            self._run("expect", record.name, *_row_of(record))
        self.queue._register(_EVENTS)
        with self._server.translated():
            self._client.hdel(self._notes, "from")

    def adopt_jobs(self, records: Sequence[JobRecord]) -> None:
        by_queue: dict[str, list[JobRecord]] = {}
        for record in records:
            by_queue.setdefault(record.queue, []).append(record)
        for name, mine in by_queue.items():
            for some in batched(mine, _BATCH):
                self._run("adopt", name, [_row(record) for record in some])
        with self._server.translated():
            self._client.hset(self._notes, "jobs_after", _raw(records[-1].place))

    def adopt_leases(self, records: Sequence[LeaseRecord]) -> None:
        for record in records:
            self._hold(record.queue, [record])

    def _hold(self, queue: str, records: Sequence[LeaseRecord]) -> None:
        rows = [(secrets.token_hex(8), *_row_of_lease(record)) for record in records]
        self._run("hold", queue, rows)

    def adopt_events(self, events: Sequence[StoredEvent]) -> None:
        stream = self._server.key_of(_EVENTS, "events")
        for some in batched(events, _BATCH):
            with self._server.translated(), self._client.pipeline(transaction=True) as together:
                for e in some:
                    event = packed((e.id, e.type, e.source, e.subject, e.data))
                    together.xadd(stream, {"time_ms": e.time_ms, "event": event})
                place = _raw(str(some[-1].position))
                together.set(self._server.key_of(_EVENTS, "adopted"), place)
                together.execute()

    def opened(self) -> None:
        self._write("to", {**(self._note("to") or {}), "opened": True})

    def forget_arrival(self) -> None:
        with self._server.translated():
            self._client.hdel(self._notes, "to", "jobs_after")
            self._client.delete(self._server.key_of(_EVENTS, "adopted"))


# --- places -------------------------------------------------------------------------------


def _split(place: str) -> tuple[int, str]:
    arrival, _, queue = place.partition(":")
    return int(arrival or 0), queue


def _stamp(event: StoredEvent) -> tuple[int, ...]:
    return tuple(map(int, str(event.position).partition(":")[0].split("-")))


def _raw(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


# --- records and what the scripts take for them --------------------------------------------


def _row_of(record: QueueRecord) -> tuple[Any, ...]:
    controls = record.controls
    return (
        record.name,
        record.source,
        record.signals,
        record.generation,
        "" if controls.rate is None else repr(controls.rate),
        "" if controls.in_flight is None else controls.in_flight,
        repr(record.allowance),
        str(record.allowance_at_ms),
    )


def _job(queue: str, row: Sequence[Any]) -> JobRecord:
    id_, written, number, run_at_ms, attempts, suspect, ended, generation, *rest = row
    body, progress, status, errors = rest
    added, _, fixed = written.partition(b" ")
    key, uri, verify, etag, forced, priority, most = unpacked(fixed)
    return JobRecord(
        place=f"{int(id_)}:{queue}",
        arrival=int(id_),
        queue=queue,
        key=key,
        state=STATES[number],
        priority=priority,
        run_at_ms=run_at_ms,
        attempts=attempts,
        max_attempts=most,
        suspect=suspect,
        generation=int(generation or 0),
        forced=forced,
        verify=verify,
        enqueued_at_ms=int(added),
        finished_at_ms=int(ended) if ended else None,
        uri=uri,
        etag=etag,
        body=body,
        progress=progress,
        status=text(status),
        errors=tuple(map(error_of, errors)),
    )


def _row(record: JobRecord) -> tuple[Any, ...]:
    """A job as ``adopt.lua`` takes it."""
    if record.state is State.DEAD and not record.errors:
        raise InvalidInput(f"job {record.key!r} of {record.queue!r} is dead without a failure")
    fixed = (
        record.key,
        record.uri,
        record.verify,
        record.etag,
        record.forced,
        record.priority,
        record.max_attempts,
    )
    return (
        f"{record.arrival:016}",
        record.key,
        b"%d %s" % (record.enqueued_at_ms, packed(fixed)),
        STATES.index(record.state),
        record.priority,
        record.run_at_ms,
        record.attempts,
        record.suspect,
        "" if record.finished_at_ms is None else record.finished_at_ms,
        record.generation,
        record.body,
        record.progress,
        record.status,
        [f"{e.at_ms} {e.attempt} {e.failure_class} {e.message}" for e in record.errors],
        record.errors[-1].failure_class if record.errors else False,
    )


def _lease(queue: str, row: Sequence[Any]) -> LeaseRecord:
    worker, expires_at_ms, solo, keys = row
    return LeaseRecord(queue, text(worker), int(expires_at_ms), solo, tuple(map(text, keys)))


def _row_of_lease(record: LeaseRecord) -> tuple[Any, ...]:
    return record.worker, str(record.expires_at_ms), record.solo, record.keys
