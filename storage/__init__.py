"""Durable state: the spool of received instances and the database beside it.

Owns SQLAlchemy and Alembic. Knows nothing of models, pixels or processes.
"""
