"""Streams, their audiences, and the frames between them."""
