"""Tests that need nothing outside the process: memory links and a mock clock."""
