"""What many tests of a queue do on the way."""

from pinq.errors import FailureClass
from pinq.queue.contract import Queue
from pinq.queue.model import Event, Failure, Job, LeasedJob, NewJob, Outcome

from .conftest import Q

GONE = Failure(FailureClass.FETCH_GONE, "no such file")
BUSY = Failure(FailureClass.FETCH_TRANSIENT, "the peer is busy")


def add(queue: Queue, *keys: str, **fields: int) -> list[Outcome]:
    jobs = [NewJob(key, f"file:///{key}.jpg", **fields) for key in keys]  # type: ignore[arg-type]
    return [answer.outcome for answer in queue.enqueue(Q, jobs)]


def lease(queue: Queue, limit: int = 10, worker: str = "w", seconds: float = 60) -> list[LeasedJob]:
    found = queue.lease(Q, limit, seconds, worker)
    return list(found.jobs) if found else []


def keys(jobs: list[LeasedJob]) -> list[str]:
    return [job.key for job in jobs]


def job(queue: Queue, key: str) -> Job:
    return queue.lookup(Q, [key])[key]


def computed(key: str) -> Event:
    return Event("pinq.signal.computed", "/pinq/pins", key, {"signals": {"pdq": 1}})
