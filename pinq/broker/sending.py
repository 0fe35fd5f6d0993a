"""Sends of several threads at once are one commit.

A commit of a queue on disk waits for the disk. Whoever comes first commits; those who come
meanwhile wait, and the first of them commits for all of them.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pinq.errors import PinqError
from pinq.queue.model import Enqueued, NewJob

Enqueue = Callable[[str, Sequence[NewJob]], Sequence[Enqueued]]


@dataclass(slots=True)
class _Parcel:
    """What one thread sends. ``alone``: together with others it failed."""

    jobs: Sequence[NewJob]
    answers: Sequence[Enqueued] | None = None
    alone: bool = False


class Sending:
    """Puts jobs into queues by ``enqueue``, in as few calls as it can."""

    def __init__(self, enqueue: Enqueue) -> None:
        self._enqueue = enqueue
        self._waiting: dict[str, list[_Parcel]] = {}
        self._lock = threading.Lock()
        self._committing = threading.Lock()

    def send(self, queue_name: str, jobs: Sequence[NewJob]) -> Sequence[Enqueued]:
        """The answers to these jobs, when they are committed; raises what ``enqueue`` raises."""
        mine = _Parcel(jobs)
        with self._lock:
            self._waiting.setdefault(queue_name, []).append(mine)
        with self._committing:
            if mine.answers is None and not mine.alone:
                with self._lock:
                    parcels = self._waiting.pop(queue_name, [])
                self._commit(queue_name, parcels)
            if mine.answers is None:
                mine.answers = self._enqueue(queue_name, jobs)
        return mine.answers

    def _commit(self, queue_name: str, parcels: Sequence[_Parcel]) -> None:
        if len(parcels) < 2:
            return
        jobs = [job for parcel in parcels for job in parcel.jobs]
        try:
            answers = iter(self._enqueue(queue_name, jobs))
        except PinqError:
            # Perhaps of one of them only: each thread is to meet its own error.
            for parcel in parcels:
                parcel.alone = True
            return
        for parcel in parcels:
            parcel.answers = [next(answers) for _ in parcel.jobs]
