"""Everything relay keeps in or reads from Postgres, and the only room that imports psycopg.

Floor 1. What goes in and comes out are the values of `relay.model`.
"""
