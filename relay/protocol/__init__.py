"""What travels: messages, their two encodings, error codes. Floor 0, no trio, no I/O."""
