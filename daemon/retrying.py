"""What the operator's retry does to one study, whatever it waits for.

Owns the order: a study that is still received counts as complete first. The moves themselves are
``storage.retry``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from daemon.config import Config
from storage.completion import complete_now
from storage.database import Database
from storage.retry import Retried, retry_study
from storage.states import StudyState
from storage.studies import get_study


@dataclass(frozen=True, slots=True)
class Retry:
    """What came of a retry."""

    study_instance_uid: str
    completed_now: bool
    """It was still received, and counts as complete from now on."""
    retried: Retried

    @property
    def anything(self) -> bool:
        """False when nothing of the study waited for a person, or for time."""
        return self.completed_now or self.retried.anything


@dataclass(frozen=True, slots=True)
class StudyRetrier:
    """Retries studies of one installation."""

    config: Config
    database: Database
    prepare_again: bool
    """Whether what is well is prepared anew too, for example after a model was installed."""

    def retry(self, study_instance_uid: str, now: datetime) -> Retry:
        """Set everything of a study going again.

        Raises
        ------
        NotFound
            No such study.
        ImagesRemoved
            Retention removed its images.
        """
        still_receiving = get_study(self.database, study_instance_uid).state is StudyState.RECEIVING
        if still_receiving:
            complete_now(self.database, study_instance_uid, now)
        names = tuple(section.name for section in self.config.destinations)
        retried = retry_study(
            self.database, study_instance_uid, now,
            prepare_again=self.prepare_again, destinations=names,
        )  # fmt: skip
        return Retry(study_instance_uid, still_receiving, retried)
