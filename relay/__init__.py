"""A relay for live video over WebSockets: phones in, viewers out, alerts back."""
