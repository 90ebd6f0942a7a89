"""Who is speaking: token verification. Floor 2."""
