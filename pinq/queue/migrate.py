"""Create and upgrade the queue's database by Alembic, from inside the package."""

from importlib.resources import files

from sqlalchemy import text

from pinq.errors import SchemaMismatch
from pinq.queue.database import Transaction
from pinq.queue.tables import REVISION, REVISION_TABLE, metadata

# What development versions made, before their tables had names of their own.
_BEFORE_RELEASE = "alembic_version", "job_errors"


def revision_of(transaction: Transaction) -> str | None:
    """The database's revision; ``None`` where pinq has made nothing yet."""
    if not transaction.database.holds(transaction, REVISION_TABLE):
        return None
    return transaction.execute(text(f"SELECT version_num FROM {REVISION_TABLE}")).scalar()


def upgrade(transaction: Transaction) -> None:
    """Bring the database to this code's revision, in this transaction.

    A database without pinq's tables gets them as they are now: Alembic would make the same
    (a test compares), but takes longer to import than the rest of `pinq enqueue`. Other
    tables are left alone.

    Raises:
        SchemaMismatch: the database was made by a newer pinq, or by one before any release.
    """
    found = revision_of(transaction)
    if found == REVISION:
        return
    database = transaction.database
    if found is not None:
        by_revisions(transaction, found)
    elif all(database.holds(transaction, table) for table in _BEFORE_RELEASE):
        raise SchemaMismatch(
            f"{database.name} was made by a development version of pinq; move it away: stored "
            "signals stay, and enqueuing again skips them"
        )
    else:
        metadata.create_all(transaction.connection)
        _stamp(transaction)


def by_revisions(transaction: Transaction, found: str | None) -> None:
    """Run the revisions after ``found``, with Alembic."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(files("pinq.migrations")).replace("%", "%%"))
    config.attributes["connection"] = transaction.connection
    config.attributes["version_table"] = REVISION_TABLE
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaMismatch(
            f"{transaction.database.name} has schema revision {found!r}, which this pinq does "
            f"not know (it knows up to {REVISION!r}): it was made by a newer pinq; upgrade "
            "pinq, or use another database"
        )
    command.upgrade(config, "head")


def _stamp(transaction: Transaction) -> None:
    made = f"CREATE TABLE {REVISION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
    transaction.execute(text(made))
    stamp = text(f"INSERT INTO {REVISION_TABLE} VALUES (:head)")
    transaction.execute(stamp, {"head": REVISION})
