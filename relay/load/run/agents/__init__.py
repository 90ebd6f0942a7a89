"""Agents, the generators on other machines: who may call them, and what they let a run do."""
