"""Exposures, feedback, and the key that units are hashed with."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "exposures",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("text", sa.Integer, primary_key=True),
        sa.Column("adapter", sa.String(80), primary_key=True),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("experiment", sa.String(63)),
        sa.Column("arm", sa.String(63)),
        sa.Column("unit", sa.String(32)),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("took_ms", sa.Double, nullable=False),
    )
    op.create_index("exposures_by_experiment", "exposures", ["experiment", "arm"])
    op.create_index("exposures_by_time", "exposures", ["at_s"])
    op.create_table(
        "feedback",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("text", sa.Integer, primary_key=True),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
    )
    op.create_index("feedback_by_time", "feedback", ["at_s"])
    op.create_table(
        "facts", sa.Column("name", sa.String(32), primary_key=True), sa.Column("value", sa.Text, nullable=False)
    )


def downgrade() -> None:
    for table in ("facts", "feedback", "exposures"):
        op.drop_table(table)
