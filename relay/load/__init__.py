"""`relay load`: runs scenarios of phones, viewers and services, and reports what they saw.

The load generator is a client like any other and knows nothing of the relay's inside. A scenario
(`scenario/`) becomes a schedule that is fixed before the run. Generators, which are worker
processes or agents on other machines, play their share of the actors (`actors/`). The coordinator
(`run/`) merges their statistics and checks them (`measures/`), which are then shown and written
(`report/`).
"""
