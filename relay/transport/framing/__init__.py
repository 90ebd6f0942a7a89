"""Parsing WebSocket frames into messages, and the memory of incomplete ones."""
