"""A queue can be paused, drained and limited."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("paused", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("draining", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("rate", sa.Double),
        sa.Column("in_flight", sa.Integer),
        sa.Column("allowance", sa.Double, nullable=False, server_default="0"),
        sa.Column("allowance_at_ms", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("queues", column)


def downgrade() -> None:
    for name in ("paused", "draining", "rate", "in_flight", "allowance", "allowance_at_ms"):
        op.drop_column("queues", name)
