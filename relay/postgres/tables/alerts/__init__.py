"""The table of alerts: storing, pages, bytes, retention."""
