"""Who has which stream: this node, in step with the tables that all nodes share."""
