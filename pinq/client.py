"""The library for ingest and look-up: enqueue images, wait for them, read their signals.

It imports neither torch nor dramatiq, so it fits into a web server::

    from pinq import Client

    with Client() as client:
        added = client.enqueue("photos/cat.jpg")
        client.wait(added.signature, timeout=60)
        print(client.lookup(added.signature)["pdq"].tolist())

Where a settings file is found, and the home without one, is as in
:func:`pinq.config.load`. A client is safe to use from several threads.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

from pinq.config import PipelineSettings, Settings, load
from pinq.errors import InvalidInput
from pinq.ingest.items import SIGNATURE, BadItem, Item, Ready, item_of
from pinq.ingest.signing import prepare
from pinq.queue.model import Enqueued, Job, Outcome, State

if TYPE_CHECKING:
    from pinq.queue.contract import Queue
    from pinq.store.contract import Store

Enqueueable = str | Path | tuple[str | None, str | None] | Mapping[str, Any] | Item
"""A path or URI; (uri, signature), either of them None; or a mapping of ``uri`` and
``signature``."""

_LONGEST_WAIT_SECONDS = 3600.0
_YEAR_10000_MS = 253_402_300_800_000


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    """What became of one item: an ``outcome``, or an ``error`` that says why there is none.

    ``state`` is the state of its job afterwards.
    """

    signature: str | None
    uri: str
    outcome: Outcome | None = None
    state: State | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StoredSignal:
    """One signal of one image, as it stands in the store.

    ``data`` holds the values of ``shape`` in C order, little-endian, as ``dtype``
    (numpy's name): ``numpy.frombuffer(s.data, s.dtype).reshape(s.shape)``.
    """

    name: str
    version: int
    computed_at_ms: int
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def computed_at(self) -> datetime:
        """When it was computed, in UTC."""
        return datetime.fromtimestamp(self.computed_at_ms / 1000, UTC)

    def tolist(self) -> Any:
        """The values as lists nested like ``shape``, without numpy."""
        from pinq.signals.contract import unpack

        values = unpack(self.dtype, self.shape, self.data)
        if not self.shape:
            return values[0]
        for length in reversed(self.shape[1:]):
            values = [
                values[start : start + length] for start in range(0, len(values), max(length, 1))
            ]
        return values


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one signature stands in a galaxy.

    ``state`` is ``present`` (everything that was asked for is stored), ``pending``
    (a job is on its way), ``failed`` (a job is dead; its ``errors`` say why) or
    ``unknown``. ``signals`` holds what is stored, whatever the state.
    """

    signature: str
    galaxy: str
    state: str
    signals: Mapping[str, StoredSignal]
    jobs: tuple[Job, ...] = ()


class Client:
    """Enqueues images and looks their signals up.

    Args:
        settings: from :func:`pinq.config.load`; by default loaded from ``config``
            and ``home``.
        config: a settings file.
        home: the folder of the embedded default.

    Raises:
        ConfigError: the settings are at fault.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        config: str | Path | None = None,
        home: str | Path | None = None,
    ) -> None:
        if settings is not None and (config is not None or home is not None):
            raise InvalidInput("give a Client either settings, or config and home")
        self.settings = settings if settings is not None else load(config, home)
        self._opening = threading.Lock()
        self._queue: Queue | None = None
        self._store: Store | None = None
        self._declared: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections; safe to call twice. A closed client opens anew when used."""
        with self._opening:
            queue, self._queue = self._queue, None
            store, self._store = self._store, None
            self._declared.clear()
        if queue is not None:
            queue.close()
        if store is not None:
            store.close()

    # --- ingest ------------------------------------------------------------------

    def enqueue(
        self,
        uri: str | Path | None,
        *,
        signature: str | None = None,
        pipeline: str = "default",
        priority: int | None = None,
        run_at: datetime | int | None = None,
        force: bool = False,
    ) -> EnqueueResult:
        """Enqueue one image; when this returns, its job is committed.

        Args:
            uri: a path or URI; ``None`` where the pipeline has a media template.
            signature: the image's identity; by default the digest of the file's bytes.
            pipeline: the name of a pipeline in the settings.
            priority: 1 (first) to 9; by default the pipeline's.
            run_at: not before then; a datetime (naive: local time) or ms since 1970.
            force: run again what has succeeded or is dead.

        Raises:
            InvalidInput: the file cannot be read, or an argument cannot be used.
            ConfigError: no pipeline has that name.
        """
        item = Item("" if uri is None else str(uri), signature)
        (result,) = self.enqueue_many(
            [item], pipeline=pipeline, priority=priority, run_at=run_at, force=force
        )
        if result.error is not None:
            raise InvalidInput(result.error)
        return result

    def enqueue_many(
        self,
        items: Iterable[Enqueueable | BadItem],
        *,
        pipeline: str = "default",
        priority: int | None = None,
        run_at: datetime | int | None = None,
        force: bool = False,
        batch: int = 1000,
    ) -> Iterator[EnqueueResult]:
        """Enqueue any number of images, ``batch`` to a transaction, as they come.

        Items are read only as fast as results are taken. One result an item, in
        order; an item that cannot be used has an ``error``, and the others go on.
        Arguments as in :meth:`enqueue`; an item is a path or URI, a pair (uri,
        signature), or a mapping with ``uri`` and ``signature``. Once a result is
        out, its job is committed.

        Raises:
            InvalidInput: priority, run_at or batch cannot be used.
            ConfigError: no pipeline has that name.
        """
        chosen = self.settings.pipeline(pipeline)
        if priority is None:
            priority = chosen.priority
        if isinstance(priority, bool) or not 1 <= priority <= 9:
            raise InvalidInput(f"priority = {priority!r} should be 1 (first) to 9")
        if batch < 1:
            raise InvalidInput(f"batch = {batch!r} should be at least 1")
        due_ms = _milliseconds(run_at)
        # A function of its own, so that the arguments are checked at once.
        return self._enqueue_batches(items, pipeline, chosen, priority, due_ms, force, batch)

    def _enqueue_batches(
        self,
        items: Iterable[Enqueueable | BadItem],
        pipeline: str,
        chosen: PipelineSettings,
        priority: int,
        run_at_ms: int,
        force: bool,
        batch: int,
    ) -> Iterator[EnqueueResult]:
        prepared = prepare(map(_item, items), media=chosen.media)
        while some := list(islice(prepared, batch)):
            jobs = [
                each.job(priority=priority, max_attempts=chosen.max_attempts, run_at_ms=run_at_ms)
                for each in some
                if isinstance(each, Ready)
            ]
            answers = iter(self._enqueue_jobs(pipeline, chosen, jobs, force))
            for each in some:
                if isinstance(each, Ready):
                    answer = next(answers)
                    yield EnqueueResult(each.signature, each.uri, answer.outcome, answer.state)
                else:
                    yield EnqueueResult(None, each.source, error=str(each))

    def _enqueue_jobs(
        self, pipeline: str, chosen: PipelineSettings, jobs: list[Any], force: bool
    ) -> list[Enqueued]:
        if not jobs:
            return []
        queue = self._open_queue()
        if pipeline not in self._declared:
            queue.declare(pipeline, source=chosen.event_source)
            self._declared.add(pipeline)
        return queue.enqueue(pipeline, jobs, force=force)

    # --- look-up -----------------------------------------------------------------

    @overload
    def lookup(  # type: ignore[overload-overlap]  # a str is a sequence too, and meant as one
        self,
        signatures: str,
        *,
        galaxy: str = "default",
        signals: Sequence[str] | None = None,
    ) -> dict[str, StoredSignal]: ...

    @overload
    def lookup(
        self,
        signatures: Sequence[str],
        *,
        galaxy: str = "default",
        signals: Sequence[str] | None = None,
    ) -> dict[str, dict[str, StoredSignal]]: ...

    def lookup(
        self,
        signatures: str | Sequence[str],
        *,
        galaxy: str = "default",
        signals: Sequence[str] | None = None,
    ) -> dict[str, StoredSignal] | dict[str, dict[str, StoredSignal]]:
        """The newest stored version of each signal, by name; {} where there is none.

        For one signature its signals; for a sequence a dict of them by signature.
        Reads beside a running worker. ``signals`` limits the answer to those names.
        """
        wanted = [signatures] if isinstance(signatures, str) else list(signatures)
        for signature in wanted:
            _require_signature(signature)
        rows = self._open_store().lookup(galaxy, wanted, signals)
        found = {
            signature: {
                name: StoredSignal(
                    name,
                    version,
                    value.computed_at_ms,
                    value.dtype,
                    tuple(value.shape),
                    value.data,
                    value.meta,
                )
                for name, (version, value) in sorted(row.items())
            }
            for signature, row in zip(wanted, rows, strict=True)
        }
        return found[signatures] if isinstance(signatures, str) else found

    def job(self, signature: str, *, pipeline: str = "default") -> Job | None:
        """The job of a signature in a pipeline, with its errors; ``None`` where there is none."""
        self.settings.pipeline(pipeline)
        return self._jobs(pipeline, [signature]).get(signature)

    def state(
        self, signature: str, *, galaxy: str = "default", signals: Sequence[str] | None = None
    ) -> Standing:
        """Where a signature stands: its stored signals and its jobs, in one word.

        ``signals`` limits the question to those names.
        """
        feeding = self.settings.galaxies().get(galaxy, ())
        # Jobs first: a job that ends in between has stored its signals before.
        jobs = [job for name in feeding for job in self._jobs(name, [signature]).values()]
        stored = self.lookup(signature, galaxy=galaxy, signals=signals)
        unfinished = [job for job in jobs if job.state is not State.SUCCEEDED]
        due = {
            name
            for job in unfinished
            for name in self.settings.pipeline(job.queue).signals
            if signals is None or name in signals
        }
        missing = {name for name in due if not self._is_current(name, stored.get(name))}
        live = [job for job in unfinished if job.state is not State.DEAD]
        if stored and not missing:
            state = "present"
        elif live:
            state = "pending"
        elif unfinished:
            state = "failed"
        else:
            state = "present" if stored else "unknown"
        return Standing(signature, galaxy, state, stored, tuple(jobs))

    def _is_current(self, name: str, stored: StoredSignal | None) -> bool:
        if stored is None:
            return False
        own = self.settings.signals.get(name)
        if own is not None:
            # Its code may need torch: go by what the settings say, if they do.
            return own.version is None or stored.version >= own.version
        from pinq.signals.registry import signals_for

        (signal,) = signals_for(self.settings, [name])
        return stored.version >= signal.version

    # --- waiting -----------------------------------------------------------------

    @overload
    def wait(  # type: ignore[overload-overlap]
        self, signatures: str, timeout: float | None = None, *, pipeline: str = "default"
    ) -> Job: ...

    @overload
    def wait(
        self, signatures: Sequence[str], timeout: float | None = None, *, pipeline: str = "default"
    ) -> dict[str, Job]: ...

    def wait(
        self,
        signatures: str | Sequence[str],
        timeout: float | None = None,
        *,
        pipeline: str = "default",
    ) -> Job | dict[str, Job]:
        """Block until the jobs of these signatures have succeeded or are dead.

        Returns the job, or for a sequence the jobs by signature; look at ``state``.

        Raises:
            TimeoutError: they are not done within ``timeout`` seconds.
            InvalidInput: one of them has no job in the pipeline.
        """
        self.settings.pipeline(pipeline)
        wanted = [signatures] if isinstance(signatures, str) else list(dict.fromkeys(signatures))
        deadline = None if timeout is None else time.monotonic() + timeout
        done: dict[str, Job] = {}
        left = wanted
        seen = 0
        while True:
            started = time.monotonic()
            jobs = self._jobs(pipeline, left)
            for signature in left:
                if signature not in jobs:
                    raise InvalidInput(
                        f"{signature!r} has no job in the pipeline {pipeline!r}; enqueue it first"
                    )
            done |= {
                key: job for key, job in jobs.items() if job.state in (State.SUCCEEDED, State.DEAD)
            }
            left = [signature for signature in left if signature not in done]
            if not left:
                break
            now = time.monotonic()
            remaining = _LONGEST_WAIT_SECONDS if deadline is None else deadline - now
            if remaining <= 0:
                raise TimeoutError(
                    f"{len(left)} of {len(wanted)} jobs were not done within {timeout:g} s"
                )
            # Where others commit all the time, spend most of it asleep all the same.
            time.sleep(min(remaining, 4 * (now - started)) if seen else 0)
            seen = self._open_queue().wait(seen, remaining)
        return done[signatures] if isinstance(signatures, str) else {k: done[k] for k in wanted}

    # --- the rooms behind ----------------------------------------------------------

    def _jobs(self, pipeline: str, signatures: Sequence[str]) -> dict[str, Job]:
        for signature in signatures:
            _require_signature(signature)
        queue = self._existing_queue()
        if queue is None:
            return {}
        found: dict[str, Job] = {}
        for start in range(0, len(signatures), 1000):
            found |= queue.lookup(pipeline, signatures[start : start + 1000])
        return found

    def _open_queue(self) -> "Queue":
        with self._opening:
            if self._queue is None:
                from pinq.queue.urls import open_queue

                self._queue = open_queue(self.settings.queue)
            return self._queue

    def _existing_queue(self) -> "Queue | None":
        """The queue, unless none has been made: to look must not make one."""
        if self._queue is None:
            from pinq.queue.urls import queue_exists

            if not queue_exists(self.settings.queue):
                return None
        return self._open_queue()

    def _open_store(self) -> "Store":
        with self._opening:
            if self._store is None:
                from pinq.store.urls import open_store

                self._store = open_store(self.settings.store)
            return self._store


def _item(given: Enqueueable | BadItem) -> Item | BadItem:
    match given:
        case Item() | BadItem():
            return given
        case str() | Path():
            return Item(str(given))
        case (uri, signature):
            record: Any = {"uri": uri if uri is None else str(uri), "signature": signature}
        case Mapping():
            record = dict(given)
            if isinstance(record.get("uri"), Path):
                record["uri"] = str(record["uri"])
        case _:
            return BadItem(repr(given), "is no path, URI, (uri, signature) or mapping of the two")
    item = item_of(record)
    return item if isinstance(item, Item) else BadItem(repr(given), item)


def _milliseconds(run_at: datetime | int | None) -> int:
    if run_at is None:
        return 0
    with suppress(OverflowError, OSError, ValueError):
        value = run_at if isinstance(run_at, int) else round(run_at.timestamp() * 1000)
        if 0 <= value < _YEAR_10000_MS:
            return value
    raise InvalidInput(f"run_at = {run_at!r} should be a datetime, or milliseconds since 1970")


def _require_signature(signature: str) -> None:
    if not SIGNATURE.match(signature):
        raise InvalidInput(
            f"{signature!r} is no signature: 1 to 128 of A-Z a-z 0-9 . _ - are allowed"
        )
