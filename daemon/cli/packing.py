"""``medimgd models pack``: a package from weights, a draft, an evaluation and a few images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.output import AsJSON, failures_become_exit_codes, print_json, say

if TYPE_CHECKING:
    from model.packing import Packed

_FILE = {"exists": True, "dir_okay": False}


def pack(
    draft: Annotated[
        Path, typer.Argument(help="The manifest without digests (TOML).", exists=True)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder, or .zip, .tar, .tar.gz, to write.")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="The weights; else the draft's file.", **_FILE)
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="JSON of 'medimgd evaluate'.", **_FILE)
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Its HTML.", **_FILE)] = None,
    training: Annotated[
        Path | None, typer.Option(help="Where the weights come from (TOML, JSON).", **_FILE)
    ] = None,
    readme: Annotated[Path | None, typer.Option(help="A README for people.", **_FILE)] = None,
    input_distribution: Annotated[
        Path | None, typer.Option(help="What its inputs look like (.npz of a training).", **_FILE)
    ] = None,
    probe: Annotated[
        list[Path] | None,
        typer.Option(help="An image, a series' folder, or a .npy tensor; again.", exists=True),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=1e-6, max=0.05, help="How far a probe's score may be off.")
    ] = 1e-3,
    as_json: AsJSON = False,
) -> None:
    """Make a package: digests and the scores of its probes are computed, nothing is made up."""
    from model.packing import PackSources
    from model.packing import pack as pack_package

    sources = PackSources(
        draft=draft,
        weights=weights,
        evaluation=evaluation,
        page=page,
        training=training,
        readme=readme,
        input_distribution=input_distribution,
        probes=tuple(probe or ()),
        tolerance=tolerance,
    )
    with failures_become_exit_codes():
        packed = pack_package(sources, out)
    _tell(packed, as_json=as_json)


def _tell(packed: Packed, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "model": packed.package.at_version,
                "path": packed.path,
                "bytes": packed.size_bytes,
                "manifest_sha256": packed.package.manifest_sha256,
                "weights_sha256": packed.package.identity.weights_sha256,
                "preprocessing_digest": packed.package.preprocessing_digest,
                "probe_scores": packed.trial.probe_scores,
            }
        )
        return
    say(f"{packed.package.at_version} is packed in {packed.path} ({packed.size_bytes} bytes)")
    if packed.package.probes is None:
        say("it has no probes (--probe): 'medimgd models admit' will refuse it")
    if packed.package.evaluation is None:
        say("it has no evaluation (--evaluation): a site that requires one will not admit it")
