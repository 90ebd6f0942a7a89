"""Alerts: stored, acknowledged, dispatched. Floor 2."""
