"""What the settings say about runtimes, as ``model`` understands it.

Owns the translation. Imports no network library.
"""

from __future__ import annotations

from collections.abc import Callable

from daemon.config import Config
from model.package import ModelPackage
from model.runtimes.opening import RuntimeOptions, open_predictor
from model.runtimes.port import Predictor
from model.runtimes.remote.access import RemoteAccess

PredictorMaker = Callable[[ModelPackage], Predictor]


def runtime_options(config: Config) -> RuntimeOptions:
    """Return what the settings say about runtimes."""
    remotes = {
        each.model: RemoteAccess(each.url, each.token_file, each.ca_file, each.timeout_seconds)
        for each in config.models.remote
    }
    return RuntimeOptions(config.worker.device, config.worker.threads or None, remotes)


def configured_predictor(config: Config) -> PredictorMaker:
    """Return what makes the predictor of a package as the site's settings want it."""
    options = runtime_options(config)
    return lambda package: open_predictor(package, options)
