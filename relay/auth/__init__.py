"""Authentication: whose token it is, and what becomes of that while a connection is open."""
