"""The history of the store's schema, run by Alembic.

It must not import the tables of today: a migration says what was, not what is.
"""
