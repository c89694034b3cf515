"""Model packages for CT and MR, and installations that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.installation import Archive, Installation
from tests.receiver_lives import Site, Zygote
from tests.tiny_models import BRIGHT, DARK, TinyModel, write_package


@dataclass(frozen=True)
class TinyPackages:
    """A folder with one package for CT volumes and one for MR volumes."""

    folder: Path
    ct: TinyModel
    mr: TinyModel


@pytest.fixture(scope="session")
def tiny_packages(tmp_path_factory: pytest.TempPathFactory) -> TinyPackages:
    folder = tmp_path_factory.mktemp("packages")
    ct = write_package(
        folder / "ct-tiny-1.0.0", name="ct-tiny", kind="volume", slices=8, rows=32, columns=32,
        intensity={"kind": "window", "centre": 40, "width": 400}, output="logit",
        labels=(BRIGHT, DARK), where={"attribute": "Modality", "equals": "CT"},
    )  # fmt: skip
    mr = write_package(
        folder / "mr-tiny-1.0.0", name="mr-tiny", kind="volume", slices=8, rows=24, columns=24,
        output="probability", labels=(BRIGHT,), where={"attribute": "Modality", "equals": "MR"},
    )  # fmt: skip
    return TinyPackages(folder, ct, mr)


@pytest.fixture(scope="module")
def module_installation(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]
) -> Iterator[Callable[..., Installation]]:
    """A function making installations that end with the module."""
    yield from _installations(tmp_path_factory, free_ports)


@pytest.fixture
def installation(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]
) -> Iterator[Callable[..., Installation]]:
    """A function making installations that end with the test."""
    yield from _installations(tmp_path_factory, free_ports)


def _installations(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]
) -> Iterator[Callable[..., Installation]]:
    made: list[Installation] = []

    def make(
        archives: Sequence[Archive] = (), models: Path | None = None, settings: str = "",
        bundled: bool = False,
    ) -> Installation:  # fmt: skip
        one = Installation(
            tmp_path_factory.mktemp("site"), free_ports(), archives, models, settings, bundled
        )
        made.append(one)
        return one

    yield make
    for one in made:
        for process in one.processes.values():
            process.terminate()
        for process in one.processes.values():
            process.wait(90)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """What forks receivers."""
    with Zygote() as zygote:
        yield zygote


@pytest.fixture
def make_site(
    zygote: Zygote, tmp_path: Path, free_ports: Callable[[], int]
) -> Iterator[Callable[..., Site]]:
    """A function making data folders on which forked receivers live and die."""
    made: list[Site] = []

    def make(settings: str = "") -> Site:
        made.append(Site(zygote, tmp_path / f"site-{len(made)}", free_ports(), settings))
        return made[-1]

    yield make
    for site in made:
        site.kill_all()
