"""Frames as the hub keeps them: encoded once for all, and their bytes counted."""
