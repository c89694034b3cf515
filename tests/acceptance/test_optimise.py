"""``medimgd models optimise`` as an ML engineer uses it: convert, look, install."""

from __future__ import annotations

import json
from collections.abc import Callable

from model.package import load_package
from tests.acceptance.installation import Installation
from tests.tiny_models import BRIGHT, DARK, write_package


def test_package_is_converted_shown_checked_and_installed(
    module_installation: Callable[..., Installation], tmp_path
) -> None:
    # Given a Keras package and an installation,
    site = module_installation(bundled=False)
    source = write_package(tmp_path / "tiny", labels=(BRIGHT, DARK))
    place = tmp_path / "converted"

    # when it is converted from the command line,
    done = site.run("models", "optimise", str(source.folder), "--out", str(place), check=0)

    # then what was proven and what is lost is said,
    assert "tiny@1.0.0+onnx is in" in done.stdout
    assert "32 probes (0 of the package's own)" in done.stdout
    assert "positive findings are explained by occlusion now" in done.stdout
    # the new package can be installed and says where it comes from,
    site.run("models", "add", str(place), check=0)
    shown = json.loads(site.run("models", "show", "tiny", "--json", check=0).stdout)
    assert shown["runtime"] == "onnx"
    assert shown["conversion"]["source_weights_sha256"] == (
        load_package(source.folder).identity.weights_sha256
    )
    # and what is there already, or is no package, is a failure with a sentence.
    again = site.run("models", "optimise", "tiny", "--out", str(place), check=1)
    assert "is there already; name another place" in again.stderr
    unknown = site.run("models", "optimise", "nowhere", check=4)
    assert "there is no file nowhere, and nowhere: 1 fault: no package has this name" in (
        unknown.stderr
    )
