"""Measure medimgd on this machine: ``python -m tests.benchmarks [name ...] [--quick]``.

Owns the order of the benchmarks and the output; knows nothing of what they measure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import (
    distribution,
    end_to_end,
    memory,
    queueing,
    reception,
    serving,
    status_start,
    surroundings,
    tensor_time,
    worker_serving,
)
from tests.benchmarks.figures import Table
from tests.benchmarks.material import MaterialMissing, Workshop
from tests.benchmarks.programs import ProgramMissing

BENCHMARKS = {
    "tensors": tensor_time,
    "distribution": distribution,
    "queue": queueing,
    "status": status_start,
    "serving": serving,
    "worker": worker_serving,
    "reception": reception,
    "end-to-end": end_to_end,
    "memory": memory,
}
"""The quick ones first, so that a fault of the machine shows early."""


def main() -> int:
    """Run the named benchmarks, or all; print tables; return the exit status."""
    chosen = _arguments()
    # Neither this process nor the ones it starts should fill the tables with TensorFlow's greeting.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory(prefix="medimgd-bench-", dir=chosen.folder) as scratch:
        facts = surroundings.describe(Path(scratch))
        surroundings.show(facts)
        workshop = Workshop(Path(scratch), quick=chosen.quick)
        results: dict[str, object] = {}
        try:
            for name in chosen.names or BENCHMARKS:
                results[name] = _run(name, workshop)
        except (MaterialMissing, ProgramMissing) as error:
            print(error, file=sys.stderr)
            return 2
        finally:
            if chosen.json is not None:
                stored = {"surroundings": facts, "quick": chosen.quick, "benchmarks": results}
                chosen.json.write_text(json.dumps(stored, indent=1) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure medimgd on this machine and print tables. Asserts no time.",
        epilog="\n".join(f"{name:12} {_title(module)}" for name, module in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"what to measure: {', '.join(BENCHMARKS)}; or all"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="store every figure")
    parser.add_argument(
        "--folder", type=Path, help="where databases and spools lie; its disk is what is measured"
    )
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    return chosen


def _title(module: object) -> str:
    return (module.__doc__ or "").splitlines()[0]


def _run(name: str, workshop: Workshop) -> object:
    print(f"\n== {name}: {_title(BENCHMARKS[name])}", flush=True)
    before, started = surroundings.load_average(), time.monotonic()
    tables: list[Table] = []
    for table in BENCHMARKS[name].measure(workshop):
        table.show()
        tables.append(table)
    seconds, after = time.monotonic() - started, surroundings.load_average()
    print(f"took {seconds:.0f} s; load average {before} before, {after} after", flush=True)
    return {
        "seconds": round(seconds, 1),
        "load_average_before": before,
        "load_average_after": after,
        "tables": [table.as_json() for table in tables],
    }


if __name__ == "__main__":
    sys.exit(main())
