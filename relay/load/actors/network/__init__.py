"""Connections to the relays under test, and the network that is simulated for each."""
