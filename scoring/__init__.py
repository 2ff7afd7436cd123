"""Bulk: a table of texts in, the same table with labels out, on any number of workers. Knows no server."""
