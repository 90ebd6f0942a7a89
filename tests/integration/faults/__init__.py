"""What happens to clients when something around the relay fails, with the real parts."""
