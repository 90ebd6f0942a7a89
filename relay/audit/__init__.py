"""What is recorded about users, services and connections."""
