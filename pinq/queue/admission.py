"""What no queue takes, whatever it is kept in."""

from collections.abc import Sequence

from pinq.errors import InvalidInput
from pinq.queue.model import NewJob

_LONGEST_KEY = 128


def check(jobs: Sequence[NewJob]) -> None:
    """Refuse what could not be leased later.

    Raises:
        InvalidInput: a job's priority, attempts or key are out of bounds.
    """
    for job in jobs:
        if not 1 <= job.priority <= 9:
            raise InvalidInput(f"job {job.key!r}: priority {job.priority} is not 1 (first) to 9")
        if job.max_attempts < 1:
            raise InvalidInput(f"job {job.key!r}: {job.max_attempts} attempts are none")
        if not 1 <= len(job.key) <= _LONGEST_KEY:
            raise InvalidInput(
                f"job {job.key[:40]!r}: a key has 1 to {_LONGEST_KEY} characters, "
                f"this one {len(job.key)}"
            )
