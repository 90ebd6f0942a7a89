"""One run of a load test: the target, the tokens, the workers and their coordinator."""
