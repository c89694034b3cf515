"""How patiently the outbox repeats: a policy and the pure function over it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """How patiently the outbox repeats."""

    first_delay_seconds: float = 15.0
    max_delay_seconds: float = 2 * 3600.0
    """Between attempts of one document that the destination answers with a failure."""
    max_outage_delay_seconds: float = 300.0
    """Between attempts to reach a destination: a PACS that returns is noticed this soon."""
    jitter: float = 0.2
    """Share by which a delay is shortened or lengthened at random."""
    rejected_after: int = 3
    """Answers of permanent failure after which a delivery waits for a person; some archives
    answer so while they start."""
    max_age_seconds: float = 7 * 86400.0
    """Older deliveries that fail once more are dead; however often they were tried before."""


def backoff_seconds(
    failures: int, first: float, longest: float, jitter: float, chance: float
) -> float:
    """Return the delay after so many failures in a row: doubled each time, capped, jittered.

    Parameters
    ----------
    failures : int
        1 for the first failure.
    first, longest : float
        Seconds.
    jitter : float
        0.2 moves the delay by up to a fifth either way.
    chance : float
        In [0, 1): where within the jitter; handed in, so that the function is pure.
    """
    doubled = first * 2.0 ** min(max(failures - 1, 0), 32)
    return min(doubled, longest) * (1 + jitter * (2 * chance - 1))
