"""What the settings say about runtimes, as ``model`` understands it.

Owns the translation. Imports no network library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from daemon.config import Config
from model.package import ModelPackage
from model.runtimes.opening import RuntimeOptions, import_runtime, open_predictor
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


def configured_predictor(config: Config, device: str | None = None) -> PredictorMaker:
    """Return what makes the predictor of a package as the site's settings want it.

    Parameters
    ----------
    config : Config
        Device, threads and servers.
    device : str, optional
        Another device than the configured one.
    """
    options = runtime_options(config)
    options = replace(options, device=device or options.device)

    def make(package: ModelPackage) -> Predictor:
        # Before anything is measured: libraries stay when a model is unloaded.
        import_runtime(package.runtime.kind)
        return open_predictor(package, options)

    return make
