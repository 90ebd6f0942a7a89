"""The process and its surroundings: signals, the service manager, limits, children."""
