"""Streams, and who watches them. Floor 2."""
