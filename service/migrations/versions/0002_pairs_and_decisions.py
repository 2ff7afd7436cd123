"""Errors among the exposures, pairs of answers and shadows, and what was decided about experiments."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("exposures", sa.Column("error", sa.String(64)))
    op.create_table(
        "pairs",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("text", sa.Integer, primary_key=True),
        sa.Column("shadow", sa.String(80), primary_key=True),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("experiment", sa.String(63), nullable=False),
        sa.Column("unit", sa.String(32), nullable=False),
        sa.Column("adapter", sa.String(80), nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("shadow_label", sa.Text, nullable=False),
        sa.Column("shadow_score", sa.Double, nullable=False),
    )
    op.create_index("pairs_by_experiment", "pairs", ["experiment", "shadow"])
    op.create_index("pairs_by_time", "pairs", ["at_s"])
    op.create_table(
        "decisions",
        sa.Column("experiment", sa.String(63), primary_key=True),
        sa.Column("salt", sa.String(256), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("weights", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )


def downgrade() -> None:
    for table in ("decisions", "pairs"):
        op.drop_table(table)
    with op.batch_alter_table("exposures") as batch:
        batch.drop_column("error")
