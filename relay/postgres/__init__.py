"""Everything that relay stores in Postgres or reads from it; the only room that imports psycopg.

The tables take and return the values of `relay.model`.
"""
