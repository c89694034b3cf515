"""Derived UIDs are legal, stable, and never shared by two things."""

from __future__ import annotations

import re
import uuid
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dicom_io.results import identity
from tests.results_material import MODEL, SITE

OTHER_SITE = uuid.UUID(int=7)
LEGAL = re.compile(r"2\.25\.(0|[1-9][0-9]{0,38})")


@given(st.uuids(), st.text(), st.lists(st.text(), max_size=4))
def test_a_derived_uid_is_legal(namespace: uuid.UUID, role: str, parts: list[str]) -> None:
    uid = identity.derived_uid(namespace, role, *parts)

    assert LEGAL.fullmatch(uid)
    assert len(uid) <= 44


def test_a_derived_uid_is_stable() -> None:
    # A number that a reader can recompute: UUIDv5 of "5:model|1:a" in the namespace.
    expected = uuid.uuid5(SITE, "5:model|1:a").int

    assert identity.derived_uid(SITE, "model", "a") == f"2.25.{expected}"


def test_two_sites_never_share_a_uid() -> None:
    assert identity.model_uid(SITE, MODEL) != identity.model_uid(OTHER_SITE, MODEL)


def test_the_border_between_parts_counts() -> None:
    assert identity.derived_uid(SITE, "x", "a|b") != identity.derived_uid(SITE, "x", "a", "b")
    assert identity.derived_uid(SITE, "x", "ab", "c") != identity.derived_uid(SITE, "x", "a", "bc")


def test_a_retrained_model_is_another_device() -> None:
    for change in ({"version": "1.0.1"}, {"weights_sha256": "cd" * 32}, {"name": "other"}):
        assert identity.model_uid(SITE, replace(MODEL, **change)) != identity.model_uid(SITE, MODEL)
    retitled = replace(MODEL, title="Another title")
    assert identity.model_uid(SITE, retitled) == identity.model_uid(SITE, MODEL)


def test_versions_of_a_model_share_a_series_and_its_number() -> None:
    newer = replace(MODEL, version="2.0.0", weights_sha256="ee" * 32)

    first = identity.series_uid(SITE, "1.2", MODEL, "SR", "AI NEGATIVE")

    assert identity.series_uid(SITE, "1.2", newer, "SR", "AI NEGATIVE") == first
    assert identity.series_uid(SITE, "1.2", MODEL, "SC", "AI NEGATIVE") != first
    assert identity.series_uid(SITE, "1.3", MODEL, "SR", "AI NEGATIVE") != first
    assert identity.series_number(newer, "SR") == identity.series_number(MODEL, "SR") > 9000


def test_a_positive_never_joins_a_series_called_negative() -> None:
    negative = identity.series_uid(SITE, "1.2", MODEL, "SR", "AI NEGATIVE")

    assert identity.series_uid(SITE, "1.2", MODEL, "SR", "AI POSITIVE") != negative


def test_an_instance_uid_changes_with_content_and_class() -> None:
    uid = identity.instance_uid(SITE, "1.2", "1.3", "aa")

    assert identity.instance_uid(SITE, "1.2", "1.3", "ab") != uid
    assert identity.instance_uid(SITE, "1.2", "1.4", "aa") != uid
    assert identity.instance_uid(SITE, "1.9", "1.3", "aa") != uid


def test_a_finding_is_tracked_across_versions_of_the_model() -> None:
    newer = replace(MODEL, version="2.0.0")

    first = identity.tracking_uid(SITE, "1.2", MODEL, "Pneumonia")

    assert identity.tracking_uid(SITE, "1.2", newer, "Pneumonia") == first
    assert identity.tracking_uid(SITE, "1.2", MODEL, "Pneumothorax") != first
