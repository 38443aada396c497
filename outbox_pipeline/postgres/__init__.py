"""The PostgreSQL store: the outbox table and its ledger.

What belongs here: tables, migrations and single statements with the state change each one makes. What does not: any
decision about when to make it; the procedures on the floor above decide.
"""
