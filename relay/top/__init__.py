"""`relay top`: a relay as its operators see it, live in a terminal."""
