"""The worker process: serves its models until a stop, and starts anew when it is time.

Owns the only process that imports TensorFlow, and what happens at its start and at its end. What
becomes of a batch is the business of ``daemon.computing``.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from datetime import datetime

from daemon.computing import Worker
from daemon.config import Config
from daemon.exit_codes import ExitCode
from daemon.in_hand import note_path, read_note
from daemon.load_deaths import LoadDeaths
from daemon.logs import ACTION, JOB, REASON, STUDY
from daemon.recycling import Recycling, resident_bytes
from daemon.role import RoleProcess, now_utc
from daemon.runtimes import PredictorMaker, configured_predictor
from daemon.served_models import ServedModels
from daemon.shadow_work import ShadowWorker
from daemon.status import RENEWING
from daemon.turns import PATIENCE
from daemon.watchdog import Watchdog, Watched
from daemon.worker_figures import Utilisation, WorkerFigures, age_seconds
from model.package import ModelPackage
from model.runtimes.port import Predictor
from storage.claims import reclaim_expired
from storage.database import Database
from storage.processes import heartbeat, list_processes

_logger = logging.getLogger(__name__)

TAKE_SECONDS = 0.1
"""How long the device waits for a batch before it looks after other things."""
REFRESH_SECONDS = 1.0
"""How often the packages are looked at for changes."""
SWITCH_SECONDS = 0.001
"""How long one thread may keep the others from running Python code: a batch may take as little."""


class WorkerProcess:
    """One life of a worker.

    Parameters
    ----------
    config : Config
        Of the installation.
    database : Database
        Open for writing.
    slot : str
        In whose name jobs are leased; what a predecessor in it held is taken back first.
    make_predictor : callable, optional
        Makes what computes a package, for the configured device; the runtimes by default.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        slot: str,
        make_predictor: PredictorMaker | None = None,
    ) -> None:
        self._config = config
        self._database = database
        self._slot = slot
        left = _left_by_predecessor(database, slot)
        self._figures = WorkerFigures.from_mapping(left.get("figures"))
        self._utilisation = Utilisation(self._figures)
        self._watchdog = Watchdog(self._last_acts)
        self._deaths = LoadDeaths(left, self._tell)
        self._models = ServedModels(
            config,
            make_predictor or configured_predictor(config),
            database,
            make_predictor or configured_predictor(config, device="cpu"),
            guard=lambda what: self._watchdog.watch(what, config.worker.long_deadline_seconds),
            deaths=self._deaths,
        )
        self._worker = Worker(
            config, database, self._models, slot, self._watchdog.watch, self._figures
        )
        self._shadows = ShadowWorker(config, database, self._find_shadow, slot)
        self._recycling = Recycling(
            config.worker.recycle_batches, config.worker.recycle_growth_megabytes
        )
        self._role = RoleProcess(config, database, "worker", slot, self._renew)
        self._loads = 0
        """How often models had been loaded or unloaded at the last look."""
        self._refreshed_at: float | None = None
        self._last_batch_at = time.monotonic()
        self._is_renewing = False

    def run(self) -> ExitCode:
        """Analyse until a stop is asked for, or until it is time to start anew."""
        sys.setswitchinterval(SWITCH_SECONDS)
        note = note_path(self._config.site.data_folder, self._slot)
        self._take_back(read_note(note))
        self._shadows.reclaim()
        self._role.begin(self._detail())
        self._watchdog.start()
        self._worker.in_hand.open_note(note)
        self._role.repeat(self._step, 0.0)
        self._end()
        return ExitCode.RENEWED if self._is_renewing else ExitCode.OK

    def _take_back(self, not_begun: frozenset[int]) -> None:
        """Let what a dead predecessor held wait again; what it computed counts as a crash."""
        for job in reclaim_expired(
            self._database, now_utc(), owner=self._slot, not_begun=not_begun
        ):
            _logger.warning(
                "job %d comes back from a worker that died; it is %s", job.id, job.state,
                extra={ACTION: "job_reclaimed", JOB: job.id, STUDY: job.study_instance_uid},
            )  # fmt: skip

    def _step(self) -> bool:
        changed = self._refresh()
        unserved = self._models.unserved
        batches = self._figures.batches
        busy = self._worker.work(TAKE_SECONDS) or self._work_on_shadows()
        if changed or self._models.unserved != unserved:
            self._tell()
        # At each step: models are loaded for their turn and for shadows too.
        self._note_loads()
        if self._figures.batches != batches:
            self._last_batch_at = time.monotonic()
            self._renew_if_due()
        return busy

    def _note_loads(self) -> None:
        if self._models.load_count != self._loads:
            self._loads = self._models.load_count
            self._recycling.models_changed()

    def _refresh(self) -> bool:
        """Look for changed packages now and then; begin to claim after the first time."""
        now = time.monotonic()
        is_first = self._refreshed_at is None
        if self._refreshed_at is not None and now - self._refreshed_at < REFRESH_SECONDS:
            return False
        changed = self._models.refresh()
        self._refreshed_at = time.monotonic()
        if is_first:
            self._worker.start()
        return changed

    def _work_on_shadows(self) -> bool:
        # A shadow computes only while no study waits for an answer.
        with self._watchdog.watch("a shadow", self._config.worker.long_deadline_seconds):
            return self._shadows.work()

    def _find_shadow(self, at_version: str) -> tuple[ModelPackage, Predictor] | None:
        """Return a shadow; it takes the room of those that serve only while nothing comes."""
        if time.monotonic() - self._last_batch_at > PATIENCE.total_seconds():
            return self._models.obtain(at_version)
        return self._models.find(at_version)

    def _renew_if_due(self) -> None:
        reason = self._recycling.reason(resident_bytes())
        if reason:
            _logger.info(
                "%s: the worker starts anew", reason,
                extra={ACTION: "worker_recycled", REASON: reason},
            )  # fmt: skip
            self._is_renewing = True
            self._role.request_stop()

    def _renew(self, now: datetime) -> None:
        """Renew all leases; the heartbeat calls this."""
        self._worker.renew(now)
        self._shadows.renew(now)
        self._role.describe(self._detail())

    def _tell(self) -> None:
        """Write what changed at once."""
        self._role.describe(self._detail())
        self._role.try_to_beat()

    def _detail(self) -> Mapping[str, object]:
        kept = {"figures": self._figures.as_mapping(), **self._deaths.as_mapping()}
        if self._role.is_stopping:
            kept["loading"] = ""  # who kills the worker now does not wait for its end
        if self._refreshed_at is None:
            return {"state": "loading models", **kept}
        return {
            **self._models.detail(),
            **kept,
            "utilisation": round(self._utilisation.share(), 4),
            "resident_bytes": resident_bytes(),
            "queue_age_seconds": age_seconds(self._worker.ahead.oldest_waiting, now_utc()),
        }

    def _last_acts(self, watched: Watched) -> None:
        """Save what can be saved before the watchdog ends the process."""
        self._figures.hung += 1
        self._deaths.give_up()
        heartbeat(self._database, self._slot, now_utc(), state="hung", detail=self._detail())
        self._worker.fail_hung(watched.what, watched.seconds)

    def _end(self) -> None:
        self._watchdog.stop()
        self._worker.stop()
        self._shadows.give_back()
        self._worker.in_hand.close_note()
        self._figures.recycled += int(self._is_renewing)
        self._role.describe(self._detail())
        self._role.end(RENEWING if self._is_renewing else "")


def _left_by_predecessor(database: Database, slot: str) -> Mapping[str, object]:
    """Return what stands in the slot's row, of a worker that died or started anew."""
    rows = [each.detail for each in list_processes(database) if each.slot == slot]
    return rows[0] if rows else {}


def run_worker(
    config: Config, database: Database, slot: str, make_predictor: PredictorMaker | None = None
) -> ExitCode:
    """Analyse until a stop is asked for; what is in hand then is given back."""
    return WorkerProcess(config, database, slot, make_predictor).run()
