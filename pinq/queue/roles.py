"""Roles that one process at a time holds, such as the relay: leases of a name."""

from sqlalchemy import delete, update

from pinq.queue.database import Transaction
from pinq.queue.tables import roles


def elect(transaction: Transaction, role: str, holder: str, seconds: float, now_ms: int) -> bool:
    """Take or renew a role, if it is free, expired or held by ``holder`` already."""
    transaction.database.insert_missing(
        transaction, roles, name=role, holder=holder, expires_at_ms=now_ms
    )
    free = (roles.c.holder == holder) | (roles.c.expires_at_ms <= now_ms)
    mine = {"holder": holder, "expires_at_ms": now_ms + round(seconds * 1000)}
    claim = update(roles).where(roles.c.name == role, free).values(mine)
    return transaction.execute(claim).rowcount == 1


def resign(transaction: Transaction, role: str, holder: str) -> None:
    """Give a role up, if held."""
    transaction.execute(delete(roles).where(roles.c.name == role, roles.c.holder == holder))


def expire(transaction: Transaction, holder: str, now_ms: int) -> None:
    """Free every role of a holder that died."""
    transaction.execute(update(roles).where(roles.c.holder == holder).values(expires_at_ms=now_ms))
