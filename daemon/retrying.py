"""What the operator's retry does to one study, named by itself or one of many that wait.

Owns the order: a study that was named counts as complete first when it is still received, and one
of many is left to its senders. The moves themselves are ``storage.retry``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from daemon.config import Config
from storage.completion import complete_now
from storage.database import Database
from storage.retry import Retried, retry_study
from storage.states import StudyState
from storage.stuck_studies import WaitsForPerson
from storage.studies import get_study


@dataclass(frozen=True, slots=True)
class Retry:
    """What came of a retry."""

    study_instance_uid: str
    retried: Retried
    completed_now: bool = False
    """It was still received, and counts as complete from now on."""
    left_alone: str = ""
    """Why a retry of many studies did not touch its state; empty when there was no reason."""

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
        ImagesRemoved, ImagesLost
            Nothing of its images is left to analyse.
        """
        still_receiving = get_study(self.database, study_instance_uid).state is StudyState.RECEIVING
        if still_receiving:
            complete_now(self.database, study_instance_uid, now)
        retried = self._retried(study_instance_uid, now, None)
        return Retry(study_instance_uid, retried, completed_now=still_receiving)

    def retry_among(self, waits: WaitsForPerson, study_instance_uid: str, now: datetime) -> Retry:
        """Set one of many studies going again, unless somebody has to look at it by itself.

        A study that is still received is left alone, for it would be analysed incomplete.

        Raises
        ------
        NotFound
            No such study.
        ImagesRemoved, ImagesLost
            Nothing of its images is left to analyse.
        """
        study = get_study(self.database, study_instance_uid)
        if study.state is StudyState.RECEIVING:
            return Retry(study_instance_uid, Retried(), left_alone="it is still being received")
        retried = self._retried(study_instance_uid, now, waits)
        why = f"it stays held ({study.reason})" if retried.stays_held else ""
        return Retry(study_instance_uid, retried, left_alone=why)

    def _retried(self, uid: str, now: datetime, among: WaitsForPerson | None) -> Retried:
        names = tuple(section.name for section in self.config.destinations)
        return retry_study(
            self.database, uid, now,
            prepare_again=self.prepare_again, destinations=names, among=among,
        )  # fmt: skip
