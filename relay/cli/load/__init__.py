"""`relay load`: load tests, their results, and recordings of streams."""
