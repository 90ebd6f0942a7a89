"""Bytes: links, the stream, its outlet, and the only place that knows trio-websocket. Floor 1."""
