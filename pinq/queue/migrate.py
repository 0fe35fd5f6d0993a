"""Create and upgrade the queue's database by Alembic, from inside the package."""

from importlib.resources import files

from sqlalchemy import Connection, inspect, text

from pinq.errors import SchemaMismatch
from pinq.queue.tables import REVISION, metadata


def revision_of(connection: Connection) -> str | None:
    """The database's revision; ``None`` where pinq has made nothing yet."""
    # By hand: SQLAlchemy's inspector costs more than the rest of opening a queue.
    made = connection.exec_driver_sql(
        "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
    ).scalar()
    if not made:
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def upgrade(connection: Connection, database: str) -> None:
    """Bring the database to this code's revision, in the connection's transaction.

    An empty database gets the tables as they are now: Alembic would make the same
    (a test compares), but takes longer to import than the rest of `pinq enqueue`.

    Raises:
        SchemaMismatch: the database was made by a newer pinq, or is not pinq's.
    """
    found = revision_of(connection)
    if found == REVISION:
        return
    if found is None and inspect(connection).get_table_names():
        raise SchemaMismatch(
            f"{database} holds tables that are not pinq's; give pinq a database of its own"
        )
    if found is None:
        metadata.create_all(connection)
        _stamp(connection)
    else:
        by_revisions(connection, database, found)


def by_revisions(connection: Connection, database: str, found: str | None) -> None:
    """Run the revisions after ``found``, with Alembic."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(files("pinq.migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaMismatch(
            f"{database} has schema revision {found!r}, which this pinq does not know "
            f"(it knows up to {REVISION!r}): it was made by a newer pinq; upgrade pinq, "
            "or use another --home"
        )
    command.upgrade(config, "head")


def _stamp(connection: Connection) -> None:
    connection.execute(
        text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    )
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": REVISION})
