"""Several nodes as one relay: links between them, and what goes over these."""
