"""One connection, from its first byte to its goodbye."""
