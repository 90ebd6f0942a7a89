"""Pictures over plain HTTP, for tools without WebSockets: single ones, and MJPEG."""
