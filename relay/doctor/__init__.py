"""Checks what relay needs on this machine, and says how to fix what is wrong."""
