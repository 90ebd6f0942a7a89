"""Figures for monitoring systems, sent while a run goes on."""
