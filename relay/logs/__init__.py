"""Logging: setting it up, limiting repeated lines, and escaping untrusted text."""
