"""Commands of those who operate a relay: its streams and users, settings, database, audit log."""
