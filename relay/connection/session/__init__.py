"""What an authenticated peer may do, and the end of its session."""
