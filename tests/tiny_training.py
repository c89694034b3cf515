"""A training that takes seconds: bright and dark films of a few patients, and a tiny network."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.manifest_writing import toml_text
from tests.labelled_images import put_film

CONFIG: dict[str, Any] = {
    "package": {
        "name": "bright",
        "version": "0.1.0",
        "title": "Bright films",
        "intended_use": "Tells bright films from dark ones, in tests.",
        "limits": ["Has seen noise only."],
    },
    "data": {"classes": ["DARK", "BRIGHT"], "patients": [r"(p\d+)_"]},
    "input": {"kind": "image", "rows": 32, "columns": 32, "intensity": {"kind": "full"}},
    "network": {
        "kind": "compact",
        "dropout": 0.2,
        "standardise": False,
        "stem_channels": 4,
        "stages": [{"channels": 6, "blocks": 1}],
    },
    "head": {"kind": "binary", "label_smoothing": 0.05},
    "fit": {"epochs": 3, "batch_size": 8, "seed": 5, "precision": "off"},
    "optimiser": {"learning_rate": 0.01},
    "calibration": {"highest_scale": 2.0},
    "threshold": {"rule": "sensitivity=0.9", "band": "sensitivity=1.0"},
    "selection": {"where": {"attribute": "Modality", "in": ["CR", "DX"]}},
    "labels": [{"name": "Bright", "class": "BRIGHT", "code": ["1", "99T", "Bright"]}],
}

BRIGHTNESS = {"DARK": 0.35, "MIDDLE": 0.5, "BRIGHT": 0.65}


def changed(**tables: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the configuration with tables merged in, or left out where they are None."""
    whole = tomllib.loads(toml_text(CONFIG))
    for name, table in tables.items():
        if table is None:
            whole.pop(name, None)
        else:
            whole[name] = {**whole.get(name, {}), **table}
    return whole


def write_config(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.toml"
    path.write_text(toml_text(values), encoding="utf-8")
    return path


def write_films(
    folder: Path,
    classes: tuple[str, ...] = ("DARK", "BRIGHT"),
    counts: Mapping[str, int] | None = None,
) -> Path:
    """Write films into ``<split>/<class>/``, two of each patient; return the folder."""
    seed = 0
    for split, count in (counts or {"train": 16, "validation": 8}).items():
        for name in classes:
            for number in range(count):
                seed += 1
                brightness = BRIGHTNESS[name] + 0.02 * (number % 5 - 2)
                patient = f"p{classes.index(name)}{len(split)}{number // 2}"
                put_film(folder / split / name / f"{patient}_{number}.png", brightness, seed)
    return folder
