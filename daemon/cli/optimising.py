"""``medimgd models optimise``: a package for a faster runtime, proven to answer as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.output import AsJSON, ConfigPath, failures_become_exit_codes, print_json, say
from daemon.exit_codes import ExitCode
from dicom_io.wording import number_of

if TYPE_CHECKING:
    from model.conversion import Conversion


class TargetValues(StrEnum):
    """What a package can be converted for."""

    ONNX = "onnx"
    OPENVINO = "openvino"


def optimise(
    package: Annotated[
        str,
        typer.Argument(
            help="A package folder, a .zip or .tar of it, or an installed name@version."
        ),
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
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """Convert a package, compare both on probe tensors, and write it only if they agree."""
    from model.conversion import default_version
    from model.conversion import optimise as convert
    from model.package import load_package
    from model.runtime_plan import RuntimeValues

    kind = RuntimeValues(runtime)
    with failures_become_exit_codes(), _folder_of(package, config) as folder:
        identity = load_package(folder).identity
        new_version = version or default_version(identity.version, kind)
        place = out or Path(f"{identity.name}-{new_version}")
        made = convert(folder, place, runtime=kind, version=new_version, tolerance=tolerance)
    if as_json:
        print_json(made)
    else:
        _say_what_was_made(made)


@contextmanager
def _folder_of(package: str, config: Path | None) -> Iterator[Path]:
    """Yield the folder of a package: one that lies there, or an installed one."""
    from daemon.catalogue import installed_catalogue
    from daemon.config import load_config
    from model.archives import package_folder
    from model.errors import CatalogueFault

    if Path(package).exists():
        with package_folder(Path(package)) as folder:
            yield folder
        return
    try:
        yield installed_catalogue(load_config(config)).item(package).folder
    except CatalogueFault as error:
        typer.echo(f"medimgd: there is no file {package}, and {error}", err=True)
        raise typer.Exit(ExitCode.NOT_FOUND) from error


def _say_what_was_made(made: Conversion) -> None:
    say(f"{made.converted} is in {made.folder}; it computes with {made.runtime} in float32")
    say(
        f"{number_of(made.probes, 'probe')} ({made.bundled_probes} of the package's own): "
        f"largest difference of a probability {made.largest_difference:.2g}, tolerance "
        f"{made.tolerance:g}; all findings are the same"
    )
    if not made.is_telling:
        say(
            "! all probes score alike, so that this proves little: pack the model with probes of "
            "both kinds ('medimgd models pack --probe'), and convert it again"
        )
    say(
        "! positive findings are explained by occlusion now, coarser and for 64 more inputs each "
        "(on volumes not at all): this runtime cannot look into the network"
    )
    say(f"install it with 'medimgd models add {made.folder}'")
