"""Agreement of two versions, in numbers that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from daemon.agreement import cohens_kappa, compare
from daemon.cli.application import app
from daemon.cli.comparing import moment
from daemon.config import Config, SiteSection
from daemon.exit_codes import ExitCode
from dicom_io.vocabulary import PresenceValues
from storage.comparison import Answer, AnswerKind
from storage.database import migrate, open_database
from storage.spool import Spool
from tests.storage_hospital import CXR, NOON, PNEUMONIA, Hospital

POSITIVE, NEGATIVE, UNSURE = (
    PresenceValues.PRESENT, PresenceValues.ABSENT, PresenceValues.UNDETERMINED,
)  # fmt: skip


def answer(presence=None, score=0.5, label="Pneumonia", kind=AnswerKind.FINDING) -> Answer:
    finding = replace(PNEUMONIA, presence=presence or POSITIVE, probability=score, label=label)
    return Answer(kind, (finding,) if kind is AnswerKind.FINDING else (), NOON, in_shadow=False)


def both(*pairs: tuple[Answer, Answer]):
    first = {(f"1.{n}", "digest"): a for n, (a, _) in enumerate(pairs)}
    second = {(f"1.{n}", "digest"): b for n, (_, b) in enumerate(pairs)}
    return compare("m@1", "m@2", first, second)


def test_the_table_kappa_and_differences_of_four_studies() -> None:
    found = both(
        (answer(POSITIVE, 0.9), answer(POSITIVE, 0.8)),
        (answer(NEGATIVE, 0.1), answer(NEGATIVE, 0.1)),
        (answer(NEGATIVE, 0.2), answer(POSITIVE, 0.7)),
        (answer(UNSURE, 0.4), answer(NEGATIVE, 0.3)),
    )

    (label,) = found.labels
    assert label.table["negative"] == {"positive": 1, "negative": 1, "undetermined": 0}
    assert label.table["undetermined"]["negative"] == 1
    assert label.agreement == 0.5
    # By chance: positive 1/4 * 2/4, negative 2/4 * 2/4, undetermined 1/4 * 0.
    assert label.kappa == pytest.approx((0.5 - 0.375) / (1 - 0.375))
    assert label.mean_difference == pytest.approx((-0.1 + 0 + 0.5 - 0.1) / 4)
    assert label.mean_absolute_difference == pytest.approx(0.7 / 4)
    assert label.largest_difference == pytest.approx(0.5)
    assert [one.study_instance_uid for one in label.discordant] == ["1.2", "1.3"]


def test_a_refusal_beside_a_finding_is_no_negative_and_is_listed() -> None:
    found = both(
        (answer(NEGATIVE), answer(kind=AnswerKind.REFUSED)),
        (answer(kind=AnswerKind.REFUSED), answer(kind=AnswerKind.REFUSED)),
    )

    assert found.both == 2
    assert found.labels == ()
    assert found.kinds["finding"]["refused"] == 1
    assert found.kinds["refused"]["refused"] == 1
    (one,) = found.discordant_kinds
    assert (one.study_instance_uid, one.first, one.second) == ("1.0", "finding", "refused")


def test_only_the_same_set_of_images_counts_as_seen_by_both() -> None:
    first = {("1.1", "before"): answer(), ("1.2", "same"): answer()}
    second = {("1.1", "after"): answer(), ("1.2", "same"): answer()}

    found = compare("m@1", "m@2", first, second)

    assert (found.first_studies, found.second_studies, found.both) == (2, 2, 1)


def test_labels_that_one_version_lacks_are_named_and_not_compared() -> None:
    found = both((answer(label="Pneumonia"), answer(label="Effusion")))

    assert found.labels == ()
    assert found.labels_of_one_only == ("Effusion", "Pneumonia")


@pytest.mark.parametrize(
    ("pairs", "kappa"),
    [
        ([], None),
        ([("negative", "negative")] * 9, None),
        ([("positive", "positive"), ("negative", "negative")], 1.0),
        ([("positive", "negative"), ("negative", "positive")], -1.0),
        ([("p", "p"), ("p", "n"), ("n", "p"), ("n", "n")], 0.0),
    ],
)
def test_kappa_of_known_tables(pairs, kappa) -> None:
    assert cohens_kappa(pairs) == kappa


def test_since_takes_a_day_an_instant_or_a_span() -> None:
    now = datetime(2025, 3, 8, 12, 0, tzinfo=UTC)

    assert moment("7d", now) == now - timedelta(days=7)
    assert moment("2025-03-01", now) == datetime(2025, 3, 1, tzinfo=UTC)
    assert moment("2025-03-01T08:00:00+01:00", now) == datetime(2025, 3, 1, 7, tzinfo=UTC)
    with pytest.raises(typer.BadParameter, match="7d"):
        moment("last week", now)
    with pytest.raises(typer.BadParameter):
        moment("999999w", now)


def test_a_version_that_never_was_here_is_not_found_and_those_that_are_are_named(
    tmp_path: Path,
) -> None:
    config = Config(site=SiteSection(data_folder=tmp_path / "data"))
    path = tmp_path / "medimgd.toml"
    path.write_text(f"[site]\ndata_folder = {str(config.site.data_folder)!r}\n")
    migrate(config.database_path)
    database = open_database(config.database_path)
    Hospital(database, Spool(config.spool_folder, 0)).analyse()
    database.close()
    asked, shipped = CXR.at_version, "mr-motion@1.0.0"

    def compared(*named: str) -> Result:
        return CliRunner().invoke(app, ["models", "compare", *named, "--config", str(path)])

    unknown = compared(asked, f"{CXR.name}@9.9.9")

    assert unknown.exit_code == ExitCode.NOT_FOUND
    assert f"no model version {CXR.name}@9.9.9 was ever installed here" in unknown.stderr
    assert asked in unknown.stderr.split("there are")[1]
    assert shipped in unknown.stderr
    # What was removed since has answered, and what is installed may have seen nothing yet.
    assert compared(asked, shipped).exit_code == 0
