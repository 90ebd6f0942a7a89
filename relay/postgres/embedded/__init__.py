"""A PostgreSQL that relay runs itself."""
