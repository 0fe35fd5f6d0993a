"""Answers to a lease, step by step: finish, renew."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update

from pinq.errors import InvalidInput, QueueError
from pinq.queue import attempts, controls, events, statements
from pinq.queue.database import Transaction, each
from pinq.queue.model import Finished, Snooze, Succeeded, Verdict
from pinq.queue.tables import jobs


def _parse(token: str) -> dict[str, Any]:
    lease_id, _, nonce = token.partition("-")
    if not lease_id.isdecimal():
        raise InvalidInput(f"{token!r} is no lease's token")
    return {"lease": int(lease_id), "nonce": nonce}


def found_lease(transaction: Transaction, token: str) -> tuple[int, int, str, int] | None:
    """A lease's id, how many jobs it holds, their ids and its queue's; locked."""
    asked = _parse(token)
    row = transaction.run(statements.FIND_LEASE, asked).one_or_none()
    return (asked["lease"], row[0], row[1], row[2]) if row else None


def renew(transaction: Transaction, token: str, seconds: float) -> bool:
    """Let a lease expire so many seconds from now; false when it is lost."""
    expires = {"expires": transaction.now_ms() + round(seconds * 1000)}
    return bool(transaction.run(statements.RENEW, _parse(token) | expires).rowcount)


def shrink(transaction: Transaction, lease_id: int, remaining: int) -> None:
    """Write down how many jobs a lease still holds; without any it ends."""
    if remaining:
        transaction.run(statements.SHRINK, {"remaining": remaining, "lease": lease_id})
    else:
        transaction.run(statements.END_LEASE, {"lease": lease_id})


def finish(transaction: Transaction, token: str, verdicts: Sequence[Verdict]) -> Finished:
    """End attempts and store their events, in the caller's transaction."""
    by_id = {verdict.id: verdict for verdict in verdicts}
    found = found_lease(transaction, token)
    if found is None:
        return Finished(refused=sorted(by_id))
    lease_id, remaining, listed, queue_id = found
    queue = controls.of_id(transaction, queue_id)
    now = queue.now_ms
    successes = [v for v in by_id.values() if isinstance(v, Succeeded)]
    others = [v for v in by_id.values() if not isinstance(v, Succeeded)]
    accepted: set[int] = set()
    if successes:
        ids = json.loads(listed)
        held = set(ids) if len(ids) == remaining else set()
        accepted |= _succeed(transaction, successes, lease_id, held, queue.generation, now)
    snoozed = dead = 0
    ids = [v.id for v in others]
    for job in attempts.held(transaction, lease_id, ids) if others else ():
        verdict = by_id[job.id]
        dead += attempts.end(transaction, queue, job, verdict, now)
        snoozed += isinstance(verdict, Snooze)
        accepted.add(job.id)
    shrink(transaction, lease_id, remaining - len(accepted))
    succeeded = sum(v.id in accepted for v in successes)
    return Finished(
        succeeded=succeeded,
        retried=len(accepted) - succeeded - snoozed - dead,
        snoozed=snoozed,
        dead=dead,
        refused=sorted(by_id.keys() - accepted),
    )


def _succeed(
    transaction: Transaction,
    successes: Sequence[Succeeded],
    lease_id: int,
    held: set[int],
    generation: int,
    now: int,
) -> set[int]:
    """End jobs, all of them if they are among those that are known to be ``held``."""
    ids = [v.id for v in successes]
    ended = {"now": now, "generation": generation, "ids": ids, "lease": lease_id}
    if held.issuperset(ids):
        # To be told which rows were changed costs more than to change them.
        if transaction.run(statements.SUCCEED + statements.HELD, ended).rowcount != len(ids):
            raise QueueError(f"lease {lease_id} lists jobs that it does not hold")
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
