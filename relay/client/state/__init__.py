"""What a client that reconnects keeps over all of its connections."""
