"""Links between nodes: who may open one, and which are open."""
