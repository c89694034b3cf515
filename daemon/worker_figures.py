"""What a worker counts: batches, images, where its time goes, and how it ended before.

Owns the figures behind ``medimgd status`` and the metrics of the worker. They outlive a process:
its successor goes on counting from what stands in the slot's row.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime

UTILISATION_SECONDS = 60.0
"""Over how long the device's use is averaged."""


@dataclass(slots=True)
class WorkerFigures:
    """Counted since the slot was first taken."""

    batches: int = 0
    images: int = 0
    places: int = 0
    """What the batches could have held."""
    waited_seconds: float = 0.0
    """The device had nothing to do."""
    computed_seconds: float = 0.0
    """The device worked, explanations included."""
    read_seconds: float = 0.0
    """Claiming and reading tensors, as a rule beside the computing."""
    recorded_seconds: float = 0.0
    """Recording results, likewise."""
    recycled: int = 0
    hung: int = 0

    @classmethod
    def from_mapping(cls, stored: object) -> WorkerFigures:
        """Return what a predecessor left; zeros where it left nothing of use."""
        known = stored if isinstance(stored, Mapping) else {}
        figures = cls()
        for each in fields(cls):
            value = known.get(each.name)
            if isinstance(value, int | float):
                setattr(figures, each.name, type(getattr(figures, each.name))(value))
        return figures

    @property
    def fill(self) -> float:
        """How full the batches were, 0 to 1."""
        return self.images / self.places if self.places else 0.0

    def as_mapping(self) -> dict[str, object]:
        """Return the figures as plain data, seconds to the millisecond."""
        rounded = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        return {**rounded, "fill": round(self.fill, 4)}


class Utilisation:
    """The share of the last minute in which the device computed."""

    def __init__(self, figures: WorkerFigures) -> None:
        self._figures = figures
        self._samples: deque[tuple[float, float]] = deque()

    def share(self, now: float | None = None) -> float:
        """Take a sample and return the share, 0 to 1."""
        moment = time.monotonic() if now is None else now
        computed = self._figures.computed_seconds
        self._samples.append((moment, computed))
        while moment - self._samples[0][0] > UTILISATION_SECONDS:
            self._samples.popleft()
        first_moment, first_computed = self._samples[0]
        elapsed = moment - first_moment
        return min(1.0, (computed - first_computed) / elapsed) if elapsed > 0 else 0.0


def age_seconds(oldest: datetime | None, now: datetime) -> float:
    """Return how long the oldest waiting analysis waits; 0 when none does."""
    return 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())
