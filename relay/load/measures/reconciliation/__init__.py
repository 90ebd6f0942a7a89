"""Whether everything that was sent arrived undamaged."""
