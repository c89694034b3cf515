"""An installation at work: a modality that notes each Success, an archive that notes each report.

Owns the two clocks of a latency; both run in this process, so that they are one.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pydicom

from dicom_io.association import Destination
from dicom_io.receiving.instances import StoreAnswer, StoreRequest
from dicom_io.receiving.part10 import file_prefix
from dicom_io.results.request import SRClassValues
from dicom_io.sending import send_paths
from storage.processes import list_processes
from tests.acceptance.installation import Installation, RecordingSink, recording_archive
from tests.benchmarks.consumption import own_processor_seconds
from tests.benchmarks.material import StudyFiles
from tests.ports import free_port

_REPORTS = frozenset(map(str, SRClassValues))
_ANALYSIS_SECONDS = 300.0
STAGES = ("complete", "prepared", "claimed", "analysed", "composed", "in the archive")


class ReportClock(RecordingSink):
    """An archive that keeps nothing but when each study's report was accepted."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: dict[str, float] = {}

    def store(self, request: StoreRequest, data_set: bytes) -> StoreAnswer:
        now = time.perf_counter()
        if request.sop_class_uid in _REPORTS:
            file = io.BytesIO(file_prefix(request) + data_set)
            ds = pydicom.dcmread(file, specific_tags=["StudyInstanceUID"])
            self.accepted.setdefault(str(ds.StudyInstanceUID), now)
        return self.answer


class BusySite:
    """A running installation with its archive."""

    def __init__(self, installation: Installation, clock: ReportClock) -> None:
        self.installation = installation
        self.clock = clock

    def push(self, study: StudyFiles) -> float:
        """Send a study on one association; return the moment of the last Success."""
        moment = 0.0
        outcomes = []
        peer = Destination("medimgd", "127.0.0.1", self.installation.port, "MEDIMGD", "MODALITY")
        for outcome in send_paths(peer, study.paths):
            moment = time.perf_counter()
            outcomes.append(outcome)
        refused = [each.outcome for each in outcomes if each.outcome.status != 0]
        if refused or len(outcomes) != len(study.paths):
            raise RuntimeError(f"medimgd did not take every instance: {refused[:3]}")
        return moment

    def stages(self, study: StudyFiles, success: float) -> dict[str, float]:
        """Return the seconds each stage took, from the last Success to the report's acceptance."""
        dossier = self.installation.wait_until_over(study.study_instance_uid, len(study.paths))
        (job,), (result,) = dossier.jobs, dossier.results
        stamps = (
            dossier.study.completed_at, dossier.study.prepared_at, job.claimed_at,
            job.finished_at, result.composed_at,
        )  # fmt: skip
        # The processes write wall clock time; this process knows both clocks.
        behind = time.time() - time.perf_counter()
        moments = [success, *(each.timestamp() - behind for each in stamps if each is not None)]
        moments.append(self.clock.accepted[study.study_instance_uid])
        spans = (after - before for before, after in pairwise(moments))
        return dict(zip(STAGES, spans, strict=True))

    def processor_seconds(self) -> dict[str, float]:
        """Return the processor time each registered process has used so far, by role."""
        known = self.installation.read(list_processes, ())
        used: dict[str, float] = {}
        for each in known:  # there may be several receivers
            used[each.role] = used.get(each.role, 0.0) + own_processor_seconds(each.pid)
        return used

    def wait_for_reports(self, count: int) -> Mapping[str, float]:
        """Wait until the archive accepted reports of `count` studies; return when each was."""
        self.installation.wait(
            lambda: len(self.clock.accepted) >= count, f"{count} reports", _ANALYSIS_SECONDS
        )
        return self.clock.accepted


@contextmanager
def busy_site(
    folder: Path, models: Path | None, *, bundled: bool, warm_up: StudyFiles
) -> Iterator[BusySite]:
    """Run every role of an installation, one study through it already; stop it at the end."""
    with recording_archive(sink=ReportClock()) as (sink, archive):
        installation = Installation(folder, free_port(), [archive], models, bundled=bundled)
        assert isinstance(sink, ReportClock)
        site = BusySite(installation, sink)
        try:
            installation.start()
            site.push(warm_up)
            site.wait_for_reports(1)
            installation.wait_until_over(warm_up.study_instance_uid)
            sink.accepted.clear()
            yield site
        finally:
            installation.stop()
