"""The senders, one process for each association, and what a round of sending took.

Owns their options and their environment. Must not know who receives.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.material import StudyFiles
from tests.benchmarks.multi_frame import MultiFrame
from tests.benchmarks.programs import dcmtk, peer_environment
from tests.benchmarks.starting_signal import Together, run_together


@dataclass(frozen=True)
class Sent:
    """What was sent, how long it took, and the senders' own processor time."""

    instances: int
    size: int
    """Bytes of the files."""
    seconds: float
    processor_seconds: float


def as_sent(sources: Sequence[Path], folder: Path) -> list[Path]:
    """Write files as DCMTK sends them, all lengths stated, so that bytes can be compared."""
    copies = [folder / f"{number:04d}.dcm" for number in range(len(sources))]
    for source, copy in zip(sources, copies, strict=True):
        subprocess.run([dcmtk("dcmconv"), "-q", source, copy], check=True)
    return copies


def dcmsend(port: int, studies: Sequence[StudyFiles], *, nagle: bool) -> Sent:
    """Send each study on its own association, all at once."""
    command = [dcmtk("dcmsend"), "-aec", "MEDIMGD", "--decompress-never", "127.0.0.1", str(port)]
    return send(command, studies, peer_environment(nagle=nagle))


def storescu(port: int, studies: Sequence[StudyFiles], *, options: Sequence[str]) -> Sent:
    """The same by storescu, which speaks TLS where dcmsend does not."""
    command = [dcmtk("storescu"), "-R", "-aec", "MEDIMGD", *options, "127.0.0.1", str(port)]
    return send(command, studies, peer_environment())


def lean(port: int, studies: Sequence[StudyFiles]) -> Sent:
    """The same by our own lean sender; its start is not included."""
    return _together("tests.benchmarks.lean_sender", [str(port)], studies)


def raw(port: int, studies: Sequence[StudyFiles]) -> Sent:
    """Send the same files without DICOM, to the bare copy."""
    return _together("tests.benchmarks.raw_copy", ["send", str(port)], studies)


def multi_frame(port: int, made: MultiFrame) -> Sent:
    """Send one object that is made on the way."""
    return _sent(
        run_together("tests.benchmarks.lean_sender", [[str(port), "multi-frame", made.argument]])
    )


def _together(module: str, arguments: list[str], studies: Sequence[StudyFiles]) -> Sent:
    return _sent(run_together(module, [[*arguments, *map(str, study.paths)] for study in studies]))


def _sent(done: Together) -> Sent:
    return Sent(
        round(done.total("instances")),
        round(done.total("size")),
        done.seconds,
        done.total("processor_seconds"),
    )


def send(
    command: Sequence[str], studies: Sequence[StudyFiles], environment: dict[str, str]
) -> Sent:
    """Run the command once for each study, its files added; from first start to last end."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        senders = [
            subprocess.Popen(
                [*command, *map(str, study.paths)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            for study in studies
        ]
        ends = [os.wait4(sender.pid, 0) for sender in senders]
        seconds = time.perf_counter() - started
        for sender, (_, status, _) in zip(senders, ends, strict=True):
            sender.returncode = os.waitstatus_to_exitcode(status)
            if sender.returncode != 0:
                output.seek(0)
                said = output.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"{command[0]} ended with {sender.returncode}: {said}")
    used = sum(usage.ru_utime + usage.ru_stime for _, _, usage in ends)
    paths = [path for study in studies for path in study.paths]
    return Sent(len(paths), sum(path.stat().st_size for path in paths), seconds, used)
