"""The command as people and scripts use it: text, JSON, exit statuses, daemon or none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.cli.studies import replay_advice
from daemon.demo import SAMPLES, bundled_samples
from daemon.passwords import hash_password
from tests.acceptance.installation import Installation, recording_archive
from tests.tiny_models import write_package

CHEST, CT, MR = bundled_samples()


def medimgd(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(sys.path)}, cwd=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def idle(module_installation: Callable[..., Installation]) -> Installation:
    """An installation that was never started."""
    return module_installation(bundled=True)


@pytest.fixture(scope="module")
def busy(module_installation: Callable[..., Installation], tmp_path_factory) -> Installation:
    """A running installation with a film model, a chest film analysed and a CT unmatched."""
    models = tmp_path_factory.mktemp("models")
    write_package(
        models / "film-1.0.0", name="film", where={"attribute": "Modality", "equals": "CR"}
    )
    with recording_archive() as (_, archive):
        site = module_installation([archive], models=models)
        site.start()
        site.send(SAMPLES / "chest-xray", SAMPLES / "ct")
        for sample in (CHEST, CT):
            site.wait_until_over(sample.study_instance_uid)
        yield site


def test_status_without_a_daemon_says_so_and_asks_for_a_person(idle: Installation) -> None:
    done = idle.run("status", check=3)

    assert "medimgd is NOT running" in done.stdout
    assert "start it with 'medimgd run'" in done.stdout


def test_status_as_json_holds_the_same(idle: Installation) -> None:
    found = idle.run_json("status", check=3)

    assert found["running"] is False
    assert found["attention"]


def test_studies_without_a_database_is_a_sentence_not_a_traceback(idle: Installation) -> None:
    done = idle.run("studies", check=1)

    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("medimgd: ")


def test_status_of_a_well_installation_needs_nobody(busy: Installation) -> None:
    found = busy.run_json("status")

    assert found["attention"] == []
    assert {each["role"] for each in found["processes"] if each["alive"]} == {
        "receiver", "scheduler", "preparer", "worker", "courier", "web",
    }  # fmt: skip
    assert found["models"] == ["film@1.0.0"]
    assert found["device"]
    assert found["destinations"][0]["last_answer"].startswith("0000")


def test_studies_lists_the_worst_first_with_flag_and_state(busy: Installation) -> None:
    lines = busy.run_json("studies")

    by_uid = {line["study_instance_uid"]: line for line in lines}
    assert by_uid[CT.study_instance_uid]["flag"] == "UNMATCHED"
    assert by_uid[CHEST.study_instance_uid]["models"] == ["film@1.0.0"]
    assert "not verified by a physician" in busy.run("studies").stdout


def test_studies_can_be_searched_and_filtered(busy: Installation) -> None:
    assert len(busy.run_json("studies", "SAMPLE-CXR")) == 1
    assert [line["flag"] for line in busy.run_json("studies", "--flag", "unmatched")] == [
        "UNMATCHED"
    ]
    assert busy.run("studies", "--flag", "nonsense", check=2).stderr


def test_show_prints_findings_report_and_deliveries(busy: Installation) -> None:
    shown = busy.run("show", "SAMPLE-1").stdout

    assert "Bright:" in shown
    assert "Imaging Measurement Report" in shown
    assert "0000 success" in shown


def test_explain_prints_each_condition_with_the_value_found(busy: Installation) -> None:
    explained = busy.run("explain", CT.study_instance_uid).stdout

    assert "[NO ] Modality is 'CT', must be 'CR'" in explained or "Modality is 'CT'" in explained
    assert "complete because: quiet for" in explained


def test_explain_names_the_result_that_can_be_replayed(busy: Installation) -> None:
    found = busy.run_json("explain", CHEST.study_instance_uid)["results"]

    assert [(each["model"], each["is_latest"]) for each in found] == [("film@1.0.0", True)]
    number = found[0]["result_id"]
    assert f"'medimgd replay {number}'" in busy.run("explain", CHEST.study_instance_uid).stdout


@pytest.mark.parametrize("kind", ["refusal", "failure"])
def test_explain_does_not_offer_to_replay_what_was_never_computed(kind: str) -> None:
    assert "'medimgd replay 7'" in replay_advice(7, "film@1.0.0", "finding")
    assert "replay" not in replay_advice(7, "film@1.0.0", kind)
    removed = replay_advice(7, "film@1.0.0", "finding", datetime(2026, 11, 29, tzinfo=UTC))
    assert "images were removed" in removed
    assert "replay" not in removed


def test_an_unknown_study_is_not_found(busy: Installation) -> None:
    done = busy.run("show", "9.9.9", check=4)

    assert "'medimgd studies' lists them" in done.stderr


def test_retry_after_a_model_was_installed_analyses_an_unmatched_study(
    busy: Installation, tmp_path: Path
) -> None:
    package = tmp_path / "late"
    write_package(
        package, name="late", kind="volume", where={"attribute": "Modality", "equals": "CT"},
        slices=4,
    )  # fmt: skip
    added = busy.run("models", "add", str(package))
    assert "late@1.0.0 is installed" in added.stdout
    assert [each["state"] for each in busy.run_json("models", "list")] == ["ready", "ready"]

    busy.run("retry", CT.study_instance_uid)

    busy.wait(lambda: busy.dossier(CT.study_instance_uid).results, "the new model's result")
    assert busy.run_json("show", CT.study_instance_uid)["study"]["line"]["flag"] != "UNMATCHED"


def test_models_show_says_who_decided_what_and_why(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(f"[site]\ndata_folder = '{tmp_path}/run'\n")
    file = ("--config", str(path))

    medimgd("models", "retire", "mr-motion@1.0.0", "--by", "Kim", "--reason", "trial over", *file)

    shown = medimgd("models", "show", "mr-motion", *file).stdout
    assert shown.splitlines()[-1].endswith("UTC model retired by Kim: trial over")
    (decision,) = json.loads(medimgd("models", "show", "mr-motion", "--json", *file).stdout)[
        "decisions"
    ]
    assert decision["detail"]["weights_sha256"]


def test_models_show_prints_labels_thresholds_and_limits(idle: Installation) -> None:
    shown = idle.run("models", "show", "cxr-pneumonia").stdout

    assert "Pneumonia" in shown
    assert "limit: " in shown
    assert "roc_auc" in shown or "auc" in shown
    assert idle.run("models", "show", "nobody", check=4).stderr


def test_models_check_names_what_a_lying_manifest_lies_about(
    idle: Installation, tmp_path: Path
) -> None:
    package = tmp_path / "liar"
    write_package(package, changes={"output": {"size": 3}})

    done = medimgd("models", "check", str(package))

    assert done.returncode == 1
    assert "3" in done.stderr


def test_echo_and_send_answer_with_exit_statuses(busy: Installation, free_port: int) -> None:
    assert medimgd("echo", f"127.0.0.1:{busy.port}").returncode == 0
    assert medimgd("echo", f"127.0.0.1:{free_port}").returncode == 6
    assert medimgd("echo", "nonsense").returncode == 2

    sent = medimgd("send", str(SAMPLES / "mr"), "--to", f"127.0.0.1:{busy.port}", "--json")

    assert sent.returncode == 0
    assert json.loads(sent.stdout)["sent"] == 6
    wrong = medimgd("send", str(SAMPLES / "mr"), "--to", f"127.0.0.1:{busy.port}", "--called", "X")
    assert wrong.returncode == 6
    assert "Called AE title not recognised" in wrong.stderr


def test_a_refused_association_is_logged_with_the_rule_that_would_admit_it(
    busy: Installation,
) -> None:
    medimgd("echo", f"127.0.0.1:{busy.port}", "--called", "STRANGER")

    busy.wait(lambda: "STRANGER" in busy.log(), "the refusal in the log")
    assert "ae_title" in busy.log()
    busy.wait(lambda: "STRANGER" in busy.run("status", check=None).stdout, "the refusal in status")


def test_doctor_tries_every_decoder_and_destination(busy: Installation) -> None:
    found = busy.run_json("doctor", check=None)

    checked = {each["subject"]: each for each in found}
    assert sum(subject.startswith("decoder ") for subject in checked) == 13
    assert all(each["ok"] for each in found), [each for each in found if not each["ok"]]
    assert "answers C-ECHO" in checked["receiver"]["detail"]


def test_config_init_writes_a_file_that_config_check_accepts(tmp_path: Path) -> None:
    assert medimgd("config", "init", folder=tmp_path).returncode == 0
    assert medimgd("config", "init", "etc/medimgd/medimgd.toml", folder=tmp_path).returncode == 0

    assert medimgd("config", "check", folder=tmp_path).returncode == 0
    assert medimgd("config", "init", folder=tmp_path).returncode == 1


def test_config_check_lists_every_fault_and_exits_5(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[receiver]\nport = -1\n[study]\nquiet_seconds = 'soon'\n")

    done = medimgd("config", "check", "--config", str(path))

    assert done.returncode == 5
    assert "receiver.port" in done.stderr
    assert "study.quiet_seconds" in done.stderr


@pytest.mark.parametrize("command", [("run",), ("run", "receiver"), ("doctor",)])
def test_a_data_folder_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "site.toml"
    path.write_text(f"[site]\ndata_folder = '{tmp_path}/file/run'\n")

    done = medimgd(*command, "--config", str(path))

    assert "Traceback" not in done.stderr
    assert f"cannot write into the data folder {tmp_path}/file/run" in done.stdout + done.stderr
    assert done.returncode == (3 if command == ("doctor",) else 1)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((), "name one study, or the studies meant by --state"),
        (("1.2", "--dry-run"), "--since, --dry-run and --yes go with --state"),
    ],
)
def test_a_retry_of_nothing_in_particular_is_a_wrong_usage(
    arguments: tuple[str, ...], rule: str
) -> None:
    done = medimgd("retry", *arguments)

    assert done.returncode == 2
    assert f"Invalid value: {rule}" in done.stderr


def test_all_processes_together_take_no_slot() -> None:
    done = medimgd("run", "--slot", "receiver-2")

    assert done.returncode == 2
    assert "medimgd run receiver --slot receiver-2" in done.stderr


def test_config_show_masks_the_password(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(f"[web]\nuser = 'r'\npassword_hash = '{hash_password('secret')}'\n")

    shown = medimgd("config", "show", "--config", str(path)).stdout

    assert "scrypt" not in shown
    assert "receiver.port = 11112" in shown


def test_version_names_the_libraries() -> None:
    found = json.loads(medimgd("version", "--json").stdout)

    assert {"medimgd", "pydicom", "pynetdicom", "tensorflow"} <= found.keys()


def test_help_and_status_import_nothing_slow() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from daemon.cli.application import app\n"
        "CliRunner().invoke(app, ['status', '--json']); CliRunner().invoke(app, ['--help'])\n"
        "slow = {'tensorflow', 'keras', 'pydicom', 'pynetdicom', 'sqlalchemy', 'numpy'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_only_the_worker_imports_tensorflow(busy: Installation) -> None:
    loaded = {
        role: "libtensorflow" in Path(f"/proc/{busy.child_pid(role)}/maps").read_text()
        for role in ("receiver", "preparer", "worker", "courier", "web")
    }

    assert loaded == {
        "receiver": False, "preparer": False, "worker": True, "courier": False, "web": False,
    }  # fmt: skip


def test_demo_ends_with_every_expected_report(tmp_path: Path) -> None:
    done = medimgd("demo", "--once", "--folder", str(tmp_path / "run"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "chest X-ray: 1 of 1 instance acknowledged" in done.stdout
    assert "Pneumonia PRESENT" in done.stdout
    assert "=== chest CT: UNMATCHED ===" in done.stdout
    assert "=== head MR: UNMATCHED ===" in done.stdout
    assert len(list((tmp_path / "run" / "archive").glob("*.dcm"))) == 2


def test_demo_fails_when_an_expected_report_cannot_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDIMGD_RECEIVER__PEERS", '[{"ae_title": "NOBODY"}]')

    done = medimgd("demo", "--once", "--folder", str(tmp_path / "run"))

    assert done.returncode in (1, 6)
    assert "medimgd: " in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_demo_stays_up_until_it_is_interrupted_and_leaves_nothing_running(
    tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon", "demo", "--folder", str(folder)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "stays up for your own studies" in line:
            break

    process.send_signal(number)

    process.stdout.read()
    process.stdout.close()
    assert process.wait(60) == 0
    assert "medimgd ended" in (folder / "medimgd.log").read_text()
