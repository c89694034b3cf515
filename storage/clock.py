"""Arithmetic on instants. Time itself is always handed in by the caller as aware UTC."""

from __future__ import annotations

from datetime import datetime, timedelta


def after(now: datetime, seconds: float) -> datetime:
    """Return the instant `seconds` after `now` (before it when negative)."""
    return now + timedelta(seconds=seconds)
