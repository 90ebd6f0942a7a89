"""Traces of alerts, from their receipt to their delivery, for OpenTelemetry; off by default."""
