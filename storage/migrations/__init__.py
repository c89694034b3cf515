"""Alembic migrations, oldest first; they only go forward.

Each migration stands for itself and imports nothing of ``storage.schema``, which moves on.
"""
