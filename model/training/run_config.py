"""The configuration that a run folder keeps: the one it was begun with, to be carried out again.

Owns what in it depends on the place of a file or on the command line; ``plan`` reads it as any
other.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from model.manifest_writing import toml_text
from model.training.plan import TrainingPlan, table_of
from model.training.run_folder import CONFIG_NAME, RunFolder, replacing, write_text


def write_config(plan: TrainingPlan, source: Path, folder: RunFolder) -> None:
    """Write the plan so that it is read as an equal one from the run folder.

    Its readme is copied beside it; data and a backbone's weights are named by whole paths.

    Parameters
    ----------
    plan : TrainingPlan
        With the options of the command line.
    source : Path
        Of the images, wherever it was named.
    folder : RunFolder
    """
    readme = plan.words.readme
    values: dict[str, Any] = dict(plan.values)
    values["data"] = {**table_of(plan.values, "data"), "source": str(source.resolve())}
    if plan.network.weights is not None:
        weights = str(plan.network.weights.resolve())
        values["network"] = {**table_of(plan.values, "network"), "weights": weights}
    if readme is not None:
        values["package"] = {**table_of(plan.values, "package"), "readme": readme.name}
        with readme.open("rb") as given, replacing(folder.path(readme.name)) as copy:
            shutil.copyfileobj(given, copy)
    about = f"# {plan.path.name} as it was carried out, with the options of the command line.\n\n"
    write_text(folder.path(CONFIG_NAME), about + toml_text(values))
