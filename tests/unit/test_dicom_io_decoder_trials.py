"""Every transfer syntax decodes a known frame to known values."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dicom_io import decoder_trials


def test_all_thirteen_encodings_decode_to_the_known_frame() -> None:
    trials = list(decoder_trials.try_decoders())

    assert len(trials) == 13
    assert [trial for trial in trials if not trial.available] == []


def test_a_damaged_codestream_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "rle.dcm"
    shutil.copy(decoder_trials.KNOWN_FRAMES / "rle.dcm", damaged)
    content = bytearray(damaged.read_bytes())
    content[-40] ^= 0xFF
    damaged.write_bytes(content)
    monkeypatch.setattr(decoder_trials, "KNOWN_FRAMES", tmp_path)

    (trial,) = decoder_trials.try_decoders()

    assert not trial.available
