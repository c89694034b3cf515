"""``medimgd models optimise``: a package for a faster runtime, proven to answer as before."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.output import AsJSON, failures_become_exit_codes, print_json, say

if TYPE_CHECKING:
    from model.conversion import Conversion


class TargetValues(StrEnum):
    """What a package can be converted for."""

    ONNX = "onnx"
    OPENVINO = "openvino"


def optimise(
    package: Annotated[
        Path, typer.Argument(help="A package folder, or a .zip or .tar of it.", exists=True)
    ],
    runtime: Annotated[TargetValues, typer.Option(help="What shall compute it.")] = (
        TargetValues.ONNX
    ),
    out: Annotated[
        Path | None, typer.Option(help="The new package; ./NAME-VERSION when absent.")
    ] = None,
    version: Annotated[
        str, typer.Option(help="Of the new package; the old one with +onnx or +openvino.")
    ] = "",
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=0.05, help="Largest difference of a probability.")
    ] = 1e-4,
    as_json: AsJSON = False,
) -> None:
    """Convert a package, compare both on probe tensors, and write it only if they agree."""
    from model.archives import package_folder
    from model.conversion import default_version
    from model.conversion import optimise as convert
    from model.package import load_package
    from model.runtime_plan import RuntimeValues

    kind = RuntimeValues(runtime)
    with failures_become_exit_codes(), package_folder(package) as folder:
        identity = load_package(folder).identity
        new_version = version or default_version(identity.version, kind)
        place = out or Path(f"{identity.name}-{new_version}")
        made = convert(folder, place, runtime=kind, version=new_version, tolerance=tolerance)
    if as_json:
        print_json(made)
    else:
        _say_what_was_made(made)


def _say_what_was_made(made: Conversion) -> None:
    say(f"{made.converted} is in {made.folder}; it computes with {made.runtime} in float32")
    say(
        f"{made.probes} probes ({made.bundled_probes} of the package's own): largest difference of "
        f"a probability {made.largest_difference:.2g}, tolerance {made.tolerance:g}; all findings "
        "are the same"
    )
    if not made.is_telling:
        say(
            "! all probes score alike, so that this proves little: pack the model with probes of "
            "both kinds ('medimgd models pack --probe'), and convert it again"
        )
    say("! positive findings are not explained by a picture: this runtime computes no maps")
    say(f"install it with 'medimgd models add {made.folder}'")
