"""Streams of one node at another: what an origin gives over a link, and an edge gets."""
