"""The relays under test: starting them, asking them, ending them."""
