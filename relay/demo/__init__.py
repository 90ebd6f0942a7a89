"""The product on show: `relay demo`. Floor 6."""

from relay.demo.stage import DemoOptions, run

__all__ = ["DemoOptions", "run"]
