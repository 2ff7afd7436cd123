"""The database's history, for Alembic. A migration never changes once it was released."""
