"""HTTP requests that relay sends to other servers."""
