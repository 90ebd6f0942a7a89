"""A relay for live video over WebSockets: phones in, viewers out, alerts back."""

__version__ = "0.1.0"
