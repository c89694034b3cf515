"""Fixtures every rung shares."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

TESTDATA_SETTING = "MEDIMGD_TESTDATA"
"""The one setting that says where the real test material lies."""

_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "testdata"


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of real DICOM files; skipped with the setting's name where it is absent."""
    folder = Path(os.environ.get(TESTDATA_SETTING, _BESIDE_THE_CHECKOUT))
    if not (folder / "MANIFEST.tsv").is_file():
        message = f"no test material at {folder}: set {TESTDATA_SETTING} to the testdata folder"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def unpacked(testdata: Path, tmp_path_factory: pytest.TempPathFactory):
    """Unpack a zip of the test material once: ``unpacked("ct-chest-60")`` gives its folder."""
    root = tmp_path_factory.mktemp("testdata")

    def unpack(name: str) -> Path:
        target = root / name
        if not target.exists():
            with zipfile.ZipFile(testdata / f"{name}.zip") as archive:
                archive.extractall(target)
        return target

    return unpack
