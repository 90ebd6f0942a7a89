"""Random clients of every manner against a real relay: the rounds of scripts/stress.py."""
