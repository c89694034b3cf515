"""Children are restarted with a growing pause, and stopped in order."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from daemon import supervisor
from daemon.exit_codes import ExitCode
from daemon.supervisor import Child, Supervisor, backoff_seconds

SLEEPS = "import time; time.sleep(60)"
DIES = "raise SystemExit(9)"


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def running():
    threads: list[tuple[Supervisor, threading.Thread, list[ExitCode]]] = []

    def run(
        children: list[Child], command, config_path: Path | None = None
    ) -> tuple[Supervisor, list[ExitCode]]:
        watched = Supervisor(children, config_path, command)
        codes: list[ExitCode] = []
        thread = threading.Thread(target=lambda: codes.append(watched.run()))
        thread.start()
        threads.append((watched, thread, codes))
        return watched, codes

    yield run
    for watched, thread, _ in threads:
        watched.request_stop()
        thread.join(30)
        assert not thread.is_alive()


def test_pauses_double_up_to_a_limit() -> None:
    assert [backoff_seconds(n) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    # A worker without its device dies twice a minute, over a weekend too.
    for deaths in (50, 1026, 10_000):
        assert backoff_seconds(deaths) == supervisor.LONGEST_BACKOFF_SECONDS


# 35 has no name: it is one of the real-time signals.
@pytest.mark.parametrize("number", [signal.SIGKILL, 35])
def test_a_killed_child_starts_again(running, number: int) -> None:
    child = Child("receiver", "receiver-1")
    running([child], lambda role, slot: program(SLEEPS))
    until(lambda: child.is_running)
    first = child.process.pid

    child.process.send_signal(number)

    until(lambda: child.is_running and child.process.pid != first)
    assert child.deaths == 1


@pytest.mark.parametrize("at_first", ["[study]\nquiet_seconds = 11\n", None])
def test_a_child_that_starts_again_has_the_configuration_of_its_siblings(
    running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_first: str | None
) -> None:
    """Whatever was written into the file since, or into one where there was none."""
    monkeypatch.chdir(tmp_path)
    path, told = tmp_path / "medimgd.toml", tmp_path / "told"
    if at_first is not None:
        path.write_text(at_first)
    child = Child("courier", "courier-1")
    tells = (
        "from daemon.config import load_config; import time\n"
        f"with open({str(told)!r}, 'a') as file:\n"
        "    print(load_config().study.quiet_seconds, file=file, flush=True)\n"
        "time.sleep(60)"
    )
    running([child], lambda role, slot: program(tells), path if at_first else None)
    until(lambda: told.exists() and told.read_text().count("\n") == 1)
    path.write_text("[study]\nquiet_seconds = 22\n")

    child.process.send_signal(signal.SIGKILL)

    until(lambda: told.read_text().count("\n") == 2)
    assert len(set(told.read_text().split())) == 1


def test_an_essential_child_that_keeps_dying_ends_the_parent(
    running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.01)
    _, codes = running([Child("courier", "courier-1")], lambda role, slot: program(DIES))

    until(lambda: bool(codes))

    assert codes == [ExitCode.CHILD_KEEPS_DYING]


def test_a_worker_that_keeps_dying_never_stops_reception(
    running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_BACKOFF_SECONDS", 0.02)
    receiver = Child("receiver", "receiver-1")
    worker = Child("worker", "worker-1", may_keep_dying=True)
    watched, codes = running(
        [receiver, worker], lambda role, slot: program(DIES if role == "worker" else SLEEPS)
    )

    until(lambda: worker.deaths > supervisor.DEATHS_BEFORE_GIVING_UP)

    assert receiver.is_running
    watched.request_stop()
    until(lambda: bool(codes))
    assert codes == [ExitCode.CHILD_KEEPS_DYING]


def test_a_worker_that_cannot_be_started_never_stops_reception(
    running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a machine that is out of processes, or a program that is being replaced,
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.01)
    receiver = Child("receiver", "receiver-1")
    worker = Child("worker", "worker-1", may_keep_dying=True)
    commands = {"worker": ["/nonexistent/python"], "receiver": program(SLEEPS)}
    running([worker, receiver], lambda role, slot: commands[role])

    until(lambda: worker.deaths > 2)

    # then reception goes on, and the worker is tried until it can be.
    until(lambda: receiver.is_running)
    commands["worker"] = program(SLEEPS)
    until(lambda: worker.is_running)
    assert receiver.is_running
    assert receiver.deaths == 0


def test_an_essential_child_that_can_never_be_started_ends_the_parent(
    running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.01)
    receiver = Child("receiver", "receiver-1")
    commands = {"receiver": program(SLEEPS), "courier": ["/nonexistent/python"]}
    _, codes = running([receiver, Child("courier", "courier-1")], lambda role, slot: commands[role])

    until(lambda: bool(codes))

    assert codes == [ExitCode.CHILD_KEEPS_DYING]
    assert not receiver.is_running


def test_reception_stops_before_the_courier(running, tmp_path: Path) -> None:
    log = tmp_path / "order"
    text = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    open({str(log)!r}, 'a').write(sys.argv[1] + '\\n')\n"
        "    raise SystemExit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"open({str(log)!r} + sys.argv[1], 'w').close()\n"
        "time.sleep(60)\n"
    )
    children = [Child("courier", "courier-1"), Child("receiver", "receiver-1")]
    watched, codes = running(children, lambda role, slot: [*program(text), role])
    until(lambda: all(Path(f"{log}{role}").exists() for role in ("courier", "receiver")))

    watched.request_stop()
    until(lambda: bool(codes))

    assert log.read_text().split() == ["receiver", "courier"]
    assert codes == [ExitCode.OK]


def test_a_worker_that_starts_anew_in_order_is_no_death_and_waits_for_nothing(
    running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a backoff that would be noticed, and a worker that asks to be renewed twice,
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 30.0)
    lives = tmp_path / "lives"
    text = (
        f"import time; f = open({str(lives)!r}, 'a'); f.write('x'); f.close()\n"
        f"if len(open({str(lives)!r}).read()) < 3: raise SystemExit({int(ExitCode.RENEWED)})\n"
        "time.sleep(60)"
    )
    worker = Child("worker", "worker-1", may_keep_dying=True)

    watched, codes = running([worker], lambda role, slot: program(text))
    until(lambda: lives.exists() and len(lives.read_text()) == 3)

    # then it runs, no death is counted, nothing was worth a warning, and the end is in order.
    assert worker.deaths == 0
    assert [each for each in caplog.records if each.levelname != "INFO"] == []
    watched.request_stop()
    until(lambda: bool(codes))
    assert codes == [ExitCode.OK]
