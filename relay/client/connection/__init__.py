"""One connection of a client: messages, requests and their answers, and signs of life."""
