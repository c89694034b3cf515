"""Models over whose loading the worker ended: how often, and which are not tried again.

Owns what a worker leaves about them in its slot's row for its successors, a death included that
lets it say nothing. How a model is loaded, and which of them serve, is not its business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from model.package import ModelPackage

DEATHS_IN_A_ROW = 2
"""A single one may be a power cut or another program's; after these the model is not tried."""

GIVEN_UP = (
    "loading it stopped the worker: it did not end in time, or the process died over it "
    f"{DEATHS_IN_A_ROW} times in a row; it is tried again when a package or a decision about one "
    "changes, and when medimgd is stopped and started"
)


def _say_nothing() -> None:
    """Tell nobody."""


class LoadDeaths:
    """What is being loaded, and what ended the worker or its predecessors while it was.

    Parameters
    ----------
    left : mapping, optional
        The slot's row, as the predecessor left it. What that was loading, it died over.
    tell : callable, optional
        Writes ``as_mapping`` to the slot's row; called before and after each load.
    """

    def __init__(
        self,
        left: Mapping[str, object] | None = None,
        tell: Callable[[], None] = _say_nothing,
    ) -> None:
        left = left or {}
        counted = left.get("load_deaths")
        self._deaths: dict[str, int] = dict(counted) if isinstance(counted, dict) else {}
        self._tell = tell
        self._loading = ""
        died_over = str(left.get("loading", ""))
        if died_over:
            self._deaths[died_over] = self._deaths.get(died_over, 0) + 1

    @contextlib.contextmanager
    def watch(self, package: ModelPackage) -> Iterator[None]:
        """Blame the package for a death in the block, and acquit it after the block's end."""
        self._loading = _key(package)
        self._tell()
        try:
            yield
        finally:
            self._deaths.pop(self._loading, None)
            self._loading = ""
            self._tell()

    def give_up(self) -> None:
        """Try what is being loaded no more: it hangs."""
        if self._loading:
            self._deaths[self._loading] = DEATHS_IN_A_ROW

    def is_given_up(self, package: ModelPackage) -> bool:
        """Return whether a package, as it is now, is not to be tried."""
        return self._deaths.get(_key(package), 0) >= DEATHS_IN_A_ROW

    def forget(self) -> None:
        """Try everything again."""
        self._deaths.clear()

    def as_mapping(self) -> Mapping[str, object]:
        """Return what successors need to know."""
        return {"loading": self._loading, "load_deaths": dict(self._deaths)}


def _key(package: ModelPackage) -> str:
    # With the digest, so that a package changed in the meantime is another one.
    return f"{package.at_version} {package.manifest_sha256}"
