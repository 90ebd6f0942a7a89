"""Several nodes as one relay.

`directory` keeps in step with the tables that all share, `held_streams` writes there what this node
has, and `claims` asks them who may produce a stream. `doors` and `links` open links between nodes;
`origin` gives streams over them, and `edge` gets them.
"""
