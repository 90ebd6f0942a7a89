"""Tests with a real Postgres, real sockets and real processes."""
