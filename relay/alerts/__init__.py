"""Alerts: stored, delivered, posted to webhooks, and removed."""
