"""``python -m model.training.synthesis SET --data SERIES --out FOLDER``: makes a labelled set."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from dicom_io.errors import MedimgdError
from model.training.synthesis.ct_nodule import make_ct_nodule
from model.training.synthesis.mr_motion import make_mr_motion

logger = logging.getLogger(__name__)

SETS = {"ct-nodule": make_ct_nodule, "mr-motion": make_mr_motion}
DEFAULT_SEED = 20261122


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a set from the command line; 0 when it was made, 1 with a sentence when not."""
    parser = argparse.ArgumentParser(prog="python -m model.training.synthesis")
    parser.add_argument("set", choices=sorted(SETS))
    parser.add_argument("--data", type=Path, required=True, help="folder or zip of the series")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.out.exists():
        logger.error("%s is there already; name another folder, or remove it", options.out)
        return 1
    try:
        manifest = SETS[options.set](options.data, options.out, options.seed)
    except (MedimgdError, OSError) as error:
        logger.error("%s", error)
        return 1
    logger.info("set written; its manifest is %s", manifest)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
