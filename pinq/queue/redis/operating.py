"""What an operator does with a queue: look at its jobs, control it, change many at once."""

import heapq
import math
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from pinq.errors import InvalidInput, QueueError
from pinq.queue.model import EVERYTHING, Controls, Counts, Filter, Job, JobError, Page, State
from pinq.queue.redis import filters
from pinq.queue.redis.filters import STATES
from pinq.queue.redis.server import RedisServer

# Jobs changed in one script by a verb that may change many, and jobs looked at to find them: other
# calls wait no longer than that takes.
_BATCH = 250
_SPAN = 500
_GROUPS = ("state", "queue", "priority", "error")
_REQUEUED, _CANCELLED = (State.DEAD,), (State.PENDING, State.LEASED)
_CONTINUATION = re.compile(r"(\d+):(.*)", re.DOTALL)
_T = TypeVar("_T")


class OperatedRedisQueue:
    """The operator's half of :class:`pinq.queue.contract.Queue`; workers' is ``queue.py``."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def queues(self) -> list[str]:
        with self._server.translated():
            return [
                name for name in self._names() if self._server.client.exists(self._server.key(name))
            ]

    def _names(self) -> list[str]:
        """Queues that are there, and ones that were: their events may be."""
        with self._server.translated():
            names: Any = self._server.client.smembers(self._server.registry)
        return sorted(map(text, names))

    def _register(self, queue: str) -> None:
        """Whatever there is in a queue, its name is known: before it is made, and after.

        After it as well, since whoever dropped it may be about to forget the name.
        """
        with self._server.translated():
            self._server.client.sadd(self._server.registry, queue)

    def _forget_name(self, queue: str) -> None:
        """If nothing is left of a queue that was dropped."""
        if not self._run("unused", queue):
            return
        with self._server.translated():
            self._server.client.srem(self._server.registry, queue)
            if self._server.client.exists(self._server.key(queue)):
                self._register(queue)

    def _run(self, name: str, queue: str, *arguments: Any) -> Any:
        return self._server.run(name, self._server.key(queue), *arguments)

    # --- controls -------------------------------------------------------------

    def controls(self, queue: str) -> Controls:
        with self._server.translated():
            row: Any = self._server.client.hmget(
                self._server.key(queue), ["paused", "draining", "rate", "in_flight"]
            )
        paused, draining, rate, in_flight = row
        return Controls(
            paused=paused == b"1",
            draining=draining == b"1",
            rate=float(rate) if rate else None,
            in_flight=int(in_flight) if in_flight else None,
        )

    def control(self, queue: str, told: Controls) -> None:
        for limit in (told.rate, told.in_flight):
            if limit is not None and not 0 < limit < math.inf:
                raise InvalidInput(f"a limit of {limit} is not above zero; pause the queue instead")
        rate, in_flight = told.rate or False, told.in_flight or False
        if not self._run("control", queue, told.paused, told.draining, rate, in_flight):
            raise InvalidInput(f"there is no queue {queue!r}")

    def drop(self, queue: str, *, force: bool = False) -> int:
        said = self._run("close", queue, force)
        if said == b"unfinished":
            raise QueueError(
                f"queue {queue!r} holds jobs that have not succeeded; drain it first, "
                "or delete it with force"
            )
        total = 0
        while said == b"closed" and (deleted := self._run("drop", queue, _BATCH)):
            total += deleted
        self._forget_name(queue)
        return total

    # --- views ----------------------------------------------------------------

    def lookup(self, queue: str, keys: Sequence[str]) -> dict[str, Job]:
        return {job.key: job for job in self._jobs(queue, Filter(queue, keys), 0, _SPAN)}

    def page(self, wanted: Filter = EVERYTHING, *, after: str = "", limit: int = 1000) -> Page:
        found = list(islice(self._merged(wanted, after, limit + 1), limit + 1))
        shown = found[:limit]
        if len(found) <= limit:
            return Page(shown, None)
        return Page(shown, f"{shown[-1].id}:{shown[-1].queue}")

    def scan(self, wanted: Filter = EVERYTHING, *, batch: int = 1000) -> Iterator[Job]:
        return self._merged(wanted, "", batch)

    def group(self, by: str, wanted: Filter = EVERYTHING) -> dict[str, int]:
        if by not in _GROUPS:
            raise InvalidInput(f"{by!r} is none of {', '.join(_GROUPS)}")
        found: Counter[str] = Counter()
        for queue in self._meant(wanted):
            if by == "queue":
                found[queue] += self._grouped(queue, wanted, "state").total()
            else:
                found += self._grouped(queue, wanted, by)
        return dict(sorted((+found).items(), key=lambda one: (-one[1], one[0])))

    def count(self, queue: str) -> Counts:
        pending, scheduled, leased, succeeded, dead, classes = self._run("count", queue)
        return Counts(
            pending=pending,
            scheduled=scheduled,
            leased=leased,
            succeeded=succeeded,
            dead=dead,
            dead_by_class={
                text(name): int(number)
                for name, number in zip(classes[::2], classes[1::2], strict=True)
            },
        )

    def _merged(self, wanted: Filter, continuation: str, limit: int) -> Iterator[Job]:
        """Jobs of all queues in order of arrival; those of one moment by queue."""
        last_id, last_queue = _position(continuation)
        ways = [
            # Of a queue up to the last one's, a job of that very id has been seen.
            self._jobs(queue, wanted, last_id if queue <= last_queue else last_id - 1, limit)
            for queue in self._meant(wanted)
        ]
        return heapq.merge(*ways, key=lambda job: (job.id, job.queue))

    def _jobs(self, queue: str, wanted: Filter, after: int, limit: int) -> Iterator[Job]:
        def step(chosen: dict[str, Any]) -> Any:
            return self._run("page", queue, chosen, min(limit, _SPAN), _SPAN)

        for rows, *_ in self._steps(queue, wanted, step, after=after, most=min(limit, _BATCH)):
            yield from (_job(queue, row) for row in rows)

    def _grouped(self, queue: str, wanted: Filter, by: str) -> "Counter[str]":
        if by == "state" and wanted == Filter(wanted.queue):
            known = self.count(queue)
            return Counter({str(state): getattr(known, state) for state in STATES})

        def step(chosen: dict[str, Any]) -> Any:
            return self._run("group", queue, chosen, _SPAN, "class" if by == "error" else by)

        found: Counter[str] = Counter()
        for flat, *_ in self._steps(queue, wanted, step):
            for name, number in zip(flat[::2], flat[1::2], strict=True):
                found[_named(by, name)] += number
        return found

    # --- many jobs at once ------------------------------------------------------

    def requeue(self, wanted: Filter, *, rate: float | None = None, dry_run: bool = False) -> int:
        if rate is not None and not 0 < rate < math.inf:
            raise InvalidInput(f"a rate of {rate} is not above zero")
        wanted = wanted.within(_REQUEUED)
        if rate is not None and not dry_run:
            return self._requeue_in_turn(wanted, 1000 / rate)

        def change(queue: str, chosen: dict[str, Any]) -> Any:
            return self._run("requeue", queue, chosen, _BATCH, _SPAN, False)

        return self._in_batches(wanted, change, dry_run)

    def _requeue_in_turn(self, wanted: Filter, gap_ms: float) -> int:
        """One after the other, in order of arrival whichever queue they are in."""
        jobs = self.scan(wanted)
        chosen = filters.as_arguments(wanted)
        done, began_ms = 0, self._server.now_ms()
        while some := list(islice(jobs, _BATCH)):
            passed_ms = self._server.now_ms() - began_ms
            delays: dict[str, dict[str, int]] = {}
            for number, job in enumerate(some, start=done):
                delay_ms = max(0, round(number * gap_ms) - passed_ms)
                delays.setdefault(job.queue, {})[id_text(job.id)] = delay_ms
            for queue, mine in delays.items():
                by_id = chosen | {"ids": list(mine)}
                done += self._run("requeue", queue, by_id, _BATCH, _SPAN, mine)[0]
        return done

    def cancel(self, wanted: Filter, *, dry_run: bool = False) -> int:
        def change(queue: str, chosen: dict[str, Any]) -> Any:
            return self._run("cancel", queue, chosen, _BATCH, _SPAN, uuid.uuid4().hex)

        return self._in_batches(wanted.within(_CANCELLED), change, dry_run)

    def delete(self, wanted: Filter, *, dry_run: bool = False) -> int:
        def change(queue: str, chosen: dict[str, Any]) -> Any:
            return self._run("delete", queue, chosen, _BATCH, _SPAN)

        return self._in_batches(wanted, change, dry_run)

    def prune(self, *, succeeded_seconds: float, dead_seconds: float, limit: int = 250) -> int:
        ages = round(succeeded_seconds * 1000), round(dead_seconds * 1000)
        done = 0
        for queue in self._names():
            while done < limit:
                batch = min(limit - done, _BATCH)
                deleted = self._run("prune", queue, *ages, batch)
                done += deleted
                if deleted < batch:
                    break
        return done

    def _in_batches(
        self, wanted: Filter, change: Callable[[str, dict[str, Any]], Any], dry_run: bool
    ) -> int:
        if dry_run:
            return sum(self.group("state", wanted).values())
        done = 0
        for queue in self._meant(wanted):
            with self._server.translated():
                last: Any = self._server.client.hget(self._server.key(queue), "last_id")
            # What arrives meanwhile is not meant: this ends, however fast others enqueue.
            step = partial(change, queue)
            for found, *_ in self._steps(queue, wanted, step, upto=last or "0"):
                done += found
        return done

    # --- which jobs -------------------------------------------------------------

    def _meant(self, wanted: Filter) -> list[str]:
        """The queues that the filter's jobs may be in."""
        if filters.is_empty(wanted):
            return []
        return self._names() if wanted.queue is None else [wanted.queue]

    def _steps(
        self,
        queue: str,
        wanted: Filter,
        step: Callable[[dict[str, Any]], Any],
        *,
        after: int = 0,
        upto: bytes | str = "+inf",
        most: int = _BATCH,
    ) -> Iterator[Any]:
        """Call ``step`` until all jobs were looked at that the filter may mean.

        It gets the filter for a part of them, and runs a script whose reply begins with
        what was found and the id to go on after. Where ids are known, it gets ``most``.
        """
        chosen = filters.as_arguments(wanted)
        if wanted.keys is not None or list(wanted.states or ()) == [State.LEASED]:
            for ids in batched(self._ids(queue, wanted.keys, after), most):
                yield step(chosen | {"ids": ids})
            return
        cursor: Any = id_text(max(after, 0))
        while cursor is not False:
            reply = step(chosen | {"after": cursor, "upto": upto})
            cursor = reply[1]
            yield reply

    def _ids(self, queue: str, keys: Sequence[str] | None, after: int) -> list[bytes]:
        """The ids of keys, or of what is leased, that come after an id; in order."""
        ids: list[Any] = []
        client = self._server.client
        with self._server.translated():
            if keys is None:
                ids = client.hkeys(self._server.key_of(queue, "leased"))
            for some in batched(keys or (), 1000):
                raw = [key.encode("utf-8", "surrogatepass") for key in some]
                ids += client.hmget(self._server.key_of(queue, "keys"), raw)
        return sorted({id_ for id_ in ids if id_ is not None and int(id_) > after})


def id_text(number: int) -> str:
    """An id as the scripts know it."""
    return f"{number:016}"


def text(raw: bytes) -> str:
    """A string as Redis gives it."""
    return raw.decode("utf-8", "surrogatepass")


def _named(by: str, name: Any) -> str:
    """A name that ``group.lua`` gives, which may be a number."""
    if by == "state":
        return STATES[name].value
    return text(name) if isinstance(name, bytes) else str(name)


def batched(values: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """The values, so many at a time."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _position(continuation: str) -> tuple[int, str]:
    if not continuation:
        return 0, ""
    match = _CONTINUATION.fullmatch(continuation)
    if match is None:
        raise InvalidInput(f"{continuation!a} is not a continuation that a page gave")
    return int(match[1]), match[2]


def _job(queue: str, row: Sequence[Any]) -> Job:
    id_, key, uri, state, priority, run_at, attempts, most, added, ended, *rest = row
    body, progress, status, errors = rest
    return Job(
        id=int(id_),
        queue=queue,
        key=text(key),
        uri=text(uri),
        state=STATES[state],
        priority=priority,
        run_at_ms=run_at,
        attempts=attempts,
        max_attempts=most,
        enqueued_at_ms=int(added),
        finished_at_ms=int(ended) if ended else None,
        body=body,
        progress=progress,
        status=text(status),
        errors=tuple(map(error_of, errors)),
    )


def error_of(line: bytes) -> JobError:
    at_ms, attempt, failure_class, message = line.split(b" ", 3)
    return JobError(text(failure_class), text(message), int(at_ms), int(attempt))
