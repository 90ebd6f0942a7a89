"""`relay load`: plays a scenario of phones, viewers and services, and says what they saw. Floor 6.

The generator is a client of the relay like any other and knows nothing of its inside. A scenario
(`scenario.py`) becomes a schedule that is fixed beforehand (`schedule.py`); worker processes play
their share of it (`engine.py`, `actors.py`); the director (`director.py`) merges what they saw
(`figures.py`), judges it (`checks.py`) and reports it (`report.py`, `html.py`).
"""
