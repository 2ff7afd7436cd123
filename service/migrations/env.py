"""Alembic's entry: runs the migrations on the connection that `service/store.py` hands over."""

from alembic import context

from service.store import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()
