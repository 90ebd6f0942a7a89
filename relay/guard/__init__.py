"""Who may come in, how many, and how fast. Floor 2."""
