"""Settings that name a package or folder which is not there are told, and stop nothing."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from daemon.cli.application import app
from daemon.config import Config, SiteSection
from daemon.dangling_settings import dangling_settings
from daemon.doctor import examine
from daemon.model_settings import ModelsSection, RemoteSection
from daemon.scheduler import Scheduler
from storage.database import migrate, open_database
from storage.spool import Spool
from tests.tiny_models import write_package
from tests.waiting import wait_until


@pytest.fixture
def site(tmp_path: Path) -> SiteSection:
    """A site with one package, which it computes itself, and one that cannot be read."""
    section = SiteSection(data_folder=tmp_path / "run")
    models = section.data_folder / "models"
    write_package(models / "tiny-1.0.0", weights=b"weights")
    (models / "broken-1.0.0").mkdir()
    (models / "broken-1.0.0" / "manifest.toml").write_text("nothing = true")
    return section


def told(site: SiteSection, **models: object) -> tuple[str, ...]:
    return dangling_settings(Config(site=site, models=ModelsSection(**models)))


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the tests themselves are told by."""
    for name in [name for name in os.environ if name.upper().startswith("MEDIMGD_")]:
        monkeypatch.delenv(name)


def actions(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record, "action", "") for record in caplog.records]


def test_a_switch_for_no_package_is_told_with_those_there_are(site: SiteSection) -> None:
    (sentence,) = told(site, disabled=("tinny",), bundled=False)

    assert "models.disabled: 'tinny' names no installed package" in sentence
    assert sentence.endswith("there are broken-1.0.0, tiny@1.0.0")


@pytest.mark.parametrize("name", ["tiny", "tiny@1.0.0", "broken-1.0.0"])
def test_a_switch_for_a_package_is_not_told(site: SiteSection, name: str) -> None:
    assert told(site, disabled=(name,)) == ()


def test_a_switch_for_another_version_is_told(site: SiteSection) -> None:
    (sentence,) = told(site, disabled=("tiny@2.0.0",))

    assert "'tiny@2.0.0' names no installed package" in sentence


def test_a_folder_that_is_not_there_is_told_and_one_that_is_not(
    site: SiteSection, tmp_path: Path
) -> None:
    absent, empty = tmp_path / "absent", tmp_path / "empty"
    empty.mkdir()

    (sentence,) = told(site, folders=(absent, empty))

    assert sentence.startswith(f"models.folders: {absent} is no folder")


def test_a_package_of_the_site_is_no_demonstration_of_medimgd(site: SiteSection) -> None:
    (sentence,) = told(site, demonstrations=("tiny",))

    assert "models.demonstrations: 'tiny' names no demonstration that medimgd ships" in sentence


def test_a_server_for_a_package_that_is_computed_here_is_told(site: SiteSection) -> None:
    server = RemoteSection(model="tiny", url="http://gpu1:8000")

    (sentence,) = told(site, remote=(server,))

    assert "models.remote: 'tiny' names no installed package that a server computes" in sentence


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MEDIMGD_RECEIVER_PORT", "MEDIMGD_RECEIVER__PORT"),
        ("medimgd_reciever_port", "MEDIMGD_RECEIVER__PORT"),
        ("MEDIMGD_WEB_PASSWORD_HASH", "MEDIMGD_WEB__PASSWORD_HASH"),
        ("MEDIMGD_RECEIVER_TLS_KEY_FILE", "MEDIMGD_RECEIVER__TLS__KEY_FILE"),
        ("MEDIMGD_DESTINATION", "MEDIMGD_DESTINATIONS"),
        ("medimgd_config", "MEDIMGD_CONFIG"),
    ],
)
def test_a_variable_that_is_spelt_like_a_setting_is_told_with_what_was_meant(
    site: SiteSection, monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "secret")

    (sentence,) = told(site)

    assert sentence.startswith(f"environment: nothing reads {name}: did you mean {meant}? ")
    assert "secret" not in sentence


def test_a_variable_that_is_like_no_setting_is_told_with_how_they_are_spelt(
    site: SiteSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDIMGD_COLOUR", "blue")

    (sentence,) = told(site)

    assert sentence.startswith(
        "environment: nothing reads MEDIMGD_COLOUR: settings are MEDIMGD_<SECTION>__<SETTING>"
    )


def test_variables_that_are_read_are_not_told(
    site: SiteSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDIMGD_CONFIG", "medimgd.toml")
    monkeypatch.setenv("MEDIMGD_SUPERVISOR_PID", "1")
    monkeypatch.setenv("medimgd_log__level", "DEBUG")
    monkeypatch.setenv("MEDIMGD_LOG", '{"level": "DEBUG"}')

    assert told(site) == ()


def test_packages_are_not_read_where_none_is_named(
    site: SiteSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "daemon.dangling_settings.installed_catalogue", lambda _: pytest.fail("they are read")
    )

    assert told(site) == ()


def test_config_check_tells_it_and_finds_no_fault(site: SiteSection, tmp_path: Path) -> None:
    path = tmp_path / "medimgd.toml"
    path.write_text(f"[site]\ndata_folder = '{site.data_folder}'\n[models]\ndisabled = ['tinny']\n")

    done = CliRunner().invoke(app, ["config", "check", "--config", str(path)])

    assert done.exit_code == 0
    assert "no fault found" in done.stdout
    assert "medimgd: warning: models.disabled: 'tinny'" in done.stderr


def test_config_check_tells_a_variable_with_one_underscore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDIMGD_RECEIVER_PORT", "10400")
    path = tmp_path / "medimgd.toml"
    path.write_text("")

    done = CliRunner().invoke(app, ["config", "check", "--config", str(path)])

    assert done.exit_code == 0
    assert "warning: environment: nothing reads MEDIMGD_RECEIVER_PORT" in done.stderr
    assert "10400" not in done.stdout + done.stderr


def test_doctor_warns_and_the_scheduler_logs_it_at_its_start(
    site: SiteSection, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(site=site, models=ModelsSection(disabled=("tinny",)))
    migrate(config.database_path)
    database = open_database(config.database_path)
    caplog.set_level(logging.WARNING)

    scheduler = Scheduler(config, database, Spool(config.spool_folder, 0))
    scheduler.start()
    assert wait_until(lambda: "setting_names_nothing" in actions(caplog), 10)
    scheduler.stop()
    database.close()

    assert "models.disabled: 'tinny'" in caplog.text
    (found,) = [each for each in examine(config) if each.subject == "setting"]
    assert (found.ok, found.warning) == (True, True)
    assert "'tinny'" in found.detail
