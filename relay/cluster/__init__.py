"""Several nodes as one relay.

In `directory`, who has which stream, as the tables say that all share; in `links`, the connections
between nodes, and how both sides prove who they are; in `streams`, what goes over these: an origin
gives streams, and an edge gets them.
"""
