"""Roles that one process at a time holds, such as the relay: leases of a name."""

from sqlalchemy import Connection, delete, update
from sqlalchemy.dialects.sqlite import insert

from pinq.queue.tables import roles


def elect(connection: Connection, role: str, holder: str, seconds: float, now_ms: int) -> bool:
    """Take or renew a role, if it is free, expired or held by ``holder`` already."""
    mine = {"holder": holder, "expires_at_ms": now_ms + round(seconds * 1000)}
    claim = insert(roles).values(name=role, **mine)
    claim = claim.on_conflict_do_update(
        index_elements=[roles.c.name],
        set_=mine,
        where=(roles.c.holder == holder) | (roles.c.expires_at_ms <= now_ms),
    )
    return connection.execute(claim).rowcount == 1


def resign(connection: Connection, role: str, holder: str) -> None:
    """Give a role up, if held."""
    connection.execute(delete(roles).where(roles.c.name == role, roles.c.holder == holder))


def expire(connection: Connection, holder: str, now_ms: int) -> None:
    """Free every role of a holder that died."""
    connection.execute(update(roles).where(roles.c.holder == holder).values(expires_at_ms=now_ms))
