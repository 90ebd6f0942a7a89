"""What stands in the way of a relay on this machine, and what to do about it. Floor 6."""
