"""Answers to a lease, step by step: finish, renew."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import select, update

from pinq.errors import InvalidInput, QueueError
from pinq.queue import attempts, controls, events, statements
from pinq.queue.database import Transaction, each
from pinq.queue.model import Finished, Snooze, Succeeded, Verdict
from pinq.queue.tables import jobs


def _parse(token: str) -> dict[str, Any]:
    if not (token.isdecimal() and int(token) < 2**63):
        raise InvalidInput(f"{token!r} is no lease's token")
    return {"lease": int(token)}


class LeaseRow(NamedTuple):
    """A lease as its row has it, and what time it was then."""

    id: int
    remaining: int
    job_ids: str
    """As JSON: all that it ever held."""
    queue_id: int
    generation: int
    now_ms: int

    def surely_holds(self, ids: Sequence[int]) -> bool:
        """Whether it holds all of these, as far as can be told without looking at the jobs."""
        listed = json.loads(self.job_ids)
        return len(listed) == self.remaining and set(listed).issuperset(ids)


def found_lease(transaction: Transaction, token: str) -> LeaseRow | None:
    """The lease with that token, locked."""
    row = transaction.row(statements.FIND_LEASE, _parse(token))
    if row is None:
        return None
    found, clock = LeaseRow(*row), transaction.database.clock
    return found if clock is None else found._replace(now_ms=clock())


def renew(transaction: Transaction, token: str, seconds: float) -> bool:
    """Let a lease expire so many seconds from now; false when it is lost."""
    expires = {"expires": transaction.now_ms() + round(seconds * 1000)}
    return bool(transaction.run(statements.RENEW, _parse(token) | expires))


def shrink(transaction: Transaction, lease_id: int, remaining: int) -> None:
    """Write down how many jobs a lease still holds; without any it ends."""
    if remaining:
        transaction.run(statements.SHRINK, {"remaining": remaining, "lease": lease_id})
    else:
        transaction.run(statements.END_LEASE, {"lease": lease_id})


def finish(transaction: Transaction, token: str, verdicts: Sequence[Verdict]) -> Finished:
    """End attempts and store their events, in the caller's transaction."""
    by_id = {verdict.id: verdict for verdict in verdicts}
    lease = found_lease(transaction, token)
    if lease is None:
        return Finished(refused=sorted(by_id))
    successes = [v for v in by_id.values() if isinstance(v, Succeeded)]
    others = [v.id for v in by_id.values() if not isinstance(v, Succeeded)]
    accepted = _succeed(transaction, lease, successes) if successes else set()
    snoozed = dead = 0
    if others:
        queue = controls.of_id(transaction, lease.queue_id)
        for job in attempts.held(transaction, lease.id, others):
            verdict = by_id[job.id]
            dead += attempts.end(transaction, queue, job, verdict, lease.now_ms)
            snoozed += isinstance(verdict, Snooze)
            accepted.add(job.id)
    shrink(transaction, lease.id, lease.remaining - len(accepted))
    succeeded = sum(v.id in accepted for v in successes)
    return Finished(
        succeeded=succeeded,
        retried=len(accepted) - succeeded - snoozed - dead,
        snoozed=snoozed,
        dead=dead,
        refused=sorted(by_id.keys() - accepted),
    )


def _succeed(transaction: Transaction, lease: LeaseRow, successes: Sequence[Succeeded]) -> set[int]:
    """End jobs; the ids of those that the lease held."""
    now, ids = lease.now_ms, [v.id for v in successes]
    ended = {"now": now, "generation": lease.generation, "ids": ids, "lease": lease.id}
    if lease.surely_holds(ids):
        # To be told which rows were changed costs more than to change them.
        if transaction.run(statements.SUCCEED + statements.HELD, ended) != len(ids):
            raise QueueError(f"lease {lease.id} lists jobs that it does not hold")
        accepted = set(ids)
    else:
        accepted = set(
            transaction.database.changed(transaction, statements.SUCCEED, statements.HELD, ended)
        )
    events.store(transaction, (v.event for v in successes if v.event and v.id in accepted), now)
    notes = {v.id: v.status for v in successes if v.status and v.id in accepted}
    if notes:
        noted = select(jobs.c.id, jobs.c.status).where(each(jobs.c.id, notes))
        for id_, status in transaction.execute(noted).all():
            values = {"status": attempts.appended(status, notes[id_])}
            transaction.execute(update(jobs).where(jobs.c.id == id_).values(values))
    return accepted
