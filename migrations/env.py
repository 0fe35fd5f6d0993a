"""Alembic's entry: runs the revisions on the connection that pinq hands over."""

from alembic import context

from pinq.queue.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=context.config.attributes["version_table"],
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
