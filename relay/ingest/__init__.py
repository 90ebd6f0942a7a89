"""Plays cameras and files into a relay, as a phone would: `relay ingest`.

A child process reads the source with PyAV (`reader.py`), so that nothing a camera sends can end or
stall this one; `ingest.py` sends what it reads while somebody watches. PyAV comes with the extra
`ingest` of this package.
"""
