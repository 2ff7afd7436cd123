"""Offline: recipes in, adapters out. Shares nothing with the service but the adapter directory."""
