"""`relay demo`: a relay with clients that show how it works."""

from relay.demo.stage import DemoOptions, run

__all__ = ["DemoOptions", "run"]
