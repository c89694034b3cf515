"""The models of a worker: which it serves, which are loaded, and which are out of order.

Owns what is loaded within the memory that models may occupy together; loading one is
``daemon.model_loading``'s business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from daemon.catalogue import Serving, serving
from daemon.config import Config
from daemon.load_deaths import GIVEN_UP, LoadDeaths
from daemon.logs import ACTION, MODEL
from daemon.model_loading import Loaded, ModelLoader
from daemon.recycling import return_memory
from daemon.runtimes import PredictorMaker
from daemon.settings import MEBIBYTE
from model.errors import ModelError
from model.package import ModelPackage
from model.runtimes.port import Predictor
from storage.database import Database
from storage.standings import list_standings

_logger = logging.getLogger(__name__)

ANOTHER_TRY_SECONDS = 30.0
"""An absent server, or a device that was full, is asked again after this long; analyses wait."""

PAUSE_FOR_EACH_SECOND = 9.0
"""Trying in vain, as with a silent server, may take a tenth of the time that other models need."""

FINISHED_SECONDS = 60.0
"""A version that serves no more is unloaded when nobody needed it for this long; what comes to wait
for it after all loads it again. Longer than any model waits for its turn (``turns.PATIENCE``)."""

TIMES_THE_WEIGHTS = 4
"""What a model that was never loaded is expected to occupy, as a multiple of its weights file."""


def _unwatched(what: str) -> AbstractContextManager[None]:
    del what
    return nullcontext()


class ServedModels:
    """The packages this worker serves: loaded and warm, not loaded yet, or out of order.

    Parameters
    ----------
    config : Config
        Where packages are, and what they may occupy.
    make_predictor : callable
        Makes what computes a package.
    database : Database, optional
        For what a person decided about versions; without one every package serves by itself.
    make_on_cpu : callable, optional
        Makes what computes a package on the CPU, where the device that is wanted cannot be used.
    guard : callable, optional
        Given what is done, returns the block in which it is done: the watchdog's.
    deaths : LoadDeaths, optional
        Told of every load; what it gives up is out of order until a package changes.
    """

    def __init__(
        self,
        config: Config,
        make_predictor: PredictorMaker,
        database: Database | None = None,
        make_on_cpu: PredictorMaker | None = None,
        guard: Callable[[str], AbstractContextManager[None]] = _unwatched,
        deaths: LoadDeaths | None = None,
    ) -> None:
        self._config = config
        self._loader = ModelLoader(config, make_predictor, make_on_cpu)
        self._database = database
        self._guard = guard
        self._deaths = deaths or LoadDeaths()
        self._serving: Serving | None = None
        self._loaded: dict[str, Loaded] = {}
        self._last_used: dict[str, float] = {}
        self._occupied_bytes: dict[str, int] = {}
        """What each model occupied when it was loaded, known from then on."""
        self._tried_later: dict[str, tuple[ModelPackage, float]] = {}
        """Packages with which nothing is wrong, and when they are tried again."""
        self.load_count = 0
        """How often a model was loaded or unloaded."""
        self.out_of_order: dict[str, str] = {}
        self.unserved: frozenset[str] = frozenset()
        """Models that jobs wait for and that cannot serve; their jobs stay in the queue."""

    def refresh(self) -> bool:
        """Load what was added and drop what was removed; True when anything changed.

        What has no room beside what is loaded is left for when somebody needs it.
        """
        standings = () if self._database is None else list_standings(self._database)
        now_serving = serving(self._config, standings)
        if now_serving is self._serving:
            has_finished = self._unload_finished()
            return self._try_again() or has_finished
        if self._serving is not None:
            self._deaths.forget()
        self._serving = now_serving
        kept = (*self._wanted(), *now_serving.finishing)
        for name, loaded in list(self._loaded.items()):
            if loaded.package not in kept:
                self._unload(name)
        self._tried_later.clear()
        self.out_of_order = dict(now_serving.out_of_order)
        for package in kept:
            if self._deaths.is_given_up(package):
                self.out_of_order[package.at_version] = GIVEN_UP
        for title, fault in self.out_of_order.items():
            _log_out_of_order(title, fault)
        for package in self._wanted():
            if self.can_load(package.at_version) and self._has_room_for(package):
                self._load(package)
        return True

    def find(self, at_version: str) -> tuple[ModelPackage, Predictor] | None:
        """Return a loaded package, or None when it is not loaded, out of order or not installed."""
        loaded = self._loaded.get(at_version)
        if loaded is None:
            return None
        self._last_used[at_version] = time.monotonic()
        return loaded.package, loaded.predictor

    def is_loaded(self, at_version: str) -> bool:
        """Return whether a model can compute at once."""
        return at_version in self._loaded

    def can_load(self, at_version: str) -> bool:
        """Return whether a model that is not loaded might serve, or finish what waits for it."""
        return (
            at_version not in self._loaded
            and at_version not in self.out_of_order
            and self._package(at_version) is not None
        )

    def obtain(self, at_version: str) -> tuple[ModelPackage, Predictor] | None:
        """Return a package, loaded now if need be, in the room of others if need be."""
        package = self._package(at_version)
        if package is not None and self.can_load(at_version):
            self._load(package)
        return self.find(at_version)

    def stands_in(self, at_version: str) -> bool:
        """Return whether the CPU computes a model in a GPU's stead."""
        loaded = self._loaded.get(at_version)
        return loaded is not None and bool(loaded.stands_in)

    def set_aside(self, package: ModelPackage, error: ModelError, seconds: float) -> None:
        """Take a package out of service; it is tried again later where that may help.

        Parameters
        ----------
        package : ModelPackage
        error : ModelError
            What is wrong with it; a retryable one says nothing against the package.
        seconds : float
            How long that took to find out.
        """
        name, fault = package.at_version, str(error)
        self._unload(name)
        if error.retryable:
            pause = max(ANOTHER_TRY_SECONDS, seconds * PAUSE_FOR_EACH_SECOND)
            self._tried_later[name] = (package, time.monotonic() + pause)
        if self.out_of_order.get(name) != fault:
            self.out_of_order[name] = fault
            _log_out_of_order(name, fault)

    def detail(self) -> Mapping[str, object]:
        """Return what ``medimgd status`` shows of this worker's models."""
        loaded = dict(self._loaded)
        described = [each.predictor.description for each in loaded.values()]
        usable = {each.at_version for each in self._wanted()} - set(self.out_of_order)
        shadows = () if self._serving is None else self._serving.shadows
        in_shadow = {each.package.at_version for each in shadows} & (usable | set(loaded))
        return {
            "device": described[0].device if described else "",
            "runtime": described[0].runtime if described else "",
            "models": sorted((usable | set(loaded)) - in_shadow),
            "shadows": sorted(in_shadow),
            "loaded_mib": {
                name: round(each.occupied_bytes / MEBIBYTE) for name, each in loaded.items()
            },
            "on_cpu_instead": {
                name: each.stands_in for name, each in loaded.items() if each.stands_in
            },
            "out_of_order": dict(self.out_of_order),
            "unserved": sorted(self.unserved),
        }

    def _wanted(self) -> tuple[ModelPackage, ...]:
        if self._serving is None:
            return ()
        return (*self._serving.packages, *(each.package for each in self._serving.shadows))

    def _package(self, at_version: str) -> ModelPackage | None:
        finishing = () if self._serving is None else self._serving.finishing
        known = (*self._wanted(), *finishing)
        return next((each for each in known if each.at_version == at_version), None)

    def _try_again(self) -> bool:
        """Try the packages whose time has come; True when there were any."""
        now = time.monotonic()
        due = [package for package, again_at in self._tried_later.values() if again_at <= now]
        for package in due:
            del self._tried_later[package.at_version]
            if self._has_room_for(package):
                self._load(package)
            else:
                self.out_of_order.pop(package.at_version, None)  # left for when it is needed
        return bool(due)

    def _unload_finished(self) -> bool:
        """Unload versions that another one has replaced and nothing waits for; True if any."""
        wanted, now = self._wanted(), time.monotonic()
        finished = [
            name
            for name, loaded in self._loaded.items()
            if loaded.package not in wanted and now - self._last_used[name] >= FINISHED_SECONDS
        ]
        for name in finished:
            _logger.info(
                "%s has finished what waited for it, and is unloaded", name,
                extra={ACTION: "model_unloaded", MODEL: name},
            )  # fmt: skip
            self._unload(name)
        return bool(finished)

    def _load(self, package: ModelPackage) -> None:
        name, started = package.at_version, time.monotonic()
        self._make_room_for(package)
        try:
            with self._deaths.watch(package), self._guard(f"loading {name}"):
                loaded = self._loader.load(package)
        except ModelError as error:
            self.set_aside(package, error, time.monotonic() - started)
            return
        self.out_of_order.pop(name, None)
        self._occupied_bytes[name] = loaded.occupied_bytes
        self._last_used[name] = time.monotonic()
        self._loaded[name] = loaded
        self.load_count += 1
        self._make_room_for(package)

    def _has_room_for(self, package: ModelPackage) -> bool:
        limit = self._config.worker.memory_megabytes * MEBIBYTE
        others = [each for name, each in self._loaded.items() if name != package.at_version]
        occupied = sum(each.occupied_bytes for each in others)
        return not limit or not others or occupied + self._expected_bytes(package) <= limit

    def _make_room_for(self, package: ModelPackage) -> None:
        """Unload what was not used for longest, until a model fits or is alone."""
        while not self._has_room_for(package):
            others = self._loaded.keys() - {package.at_version}
            name = min(others, key=lambda each: self._last_used[each])
            _logger.info(
                "%s makes room for %s", name, package.at_version,
                extra={ACTION: "model_unloaded", MODEL: name},
            )  # fmt: skip
            self._unload(name)
        limit = self._config.worker.memory_megabytes
        measured = self._loaded.get(package.at_version)
        if limit and measured is not None and measured.occupied_bytes > limit * MEBIBYTE:
            _logger.warning(
                "%s occupies %d MiB, more than worker.memory_megabytes allows all models together "
                "(%d): it is served alone", package.at_version,
                measured.occupied_bytes // MEBIBYTE, limit,
                extra={ACTION: "model_too_large", MODEL: package.at_version},
            )  # fmt: skip

    def _expected_bytes(self, package: ModelPackage) -> int:
        known = self._occupied_bytes.get(package.at_version)
        return _guessed_bytes(package) if known is None else known

    def _unload(self, at_version: str) -> None:
        if self._loaded.pop(at_version, None) is not None:
            self.load_count += 1
            return_memory()


def _guessed_bytes(package: ModelPackage) -> int:
    try:
        return TIMES_THE_WEIGHTS * package.weights_path.stat().st_size
    except OSError:
        return 0  # a server holds them


def _log_out_of_order(title: str, fault: str) -> None:
    _logger.error(
        "model %s is out of order: %s", title, fault,
        extra={ACTION: "model_out_of_order", MODEL: title},
    )  # fmt: skip
