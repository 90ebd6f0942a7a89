"""Tools for Trio that know nothing of relay."""
