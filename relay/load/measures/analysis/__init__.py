"""What results say: how two runs differ, and what limits the load."""
