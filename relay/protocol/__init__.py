"""What travels: messages, their two encodings, error codes. No trio, no I/O."""
