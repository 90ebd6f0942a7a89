"""What travels: messages, their JSON form, error codes. Floor 0, no trio, no I/O."""
