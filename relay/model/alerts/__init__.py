"""Alerts, and the pictures that are kept with them."""
