"""What a requestor says of its user, and what is said to that."""

from __future__ import annotations

import pytest
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from dicom_io.receiving.user_identity import identify

PASSCODE = "open sesame"


def knows_anna(name: str, passcode: str) -> bool:
    return (name, passcode) == ("anna", PASSCODE)


def item(kind: int, name: bytes, passcode: bytes = b"", *, answer: bool = False):
    made = UserIdentityNegotiation()
    made.user_identity_type = kind
    made.primary_field = name
    made.secondary_field = passcode
    made.positive_response_requested = answer
    return made


def test_without_users_nobody_is_asked_and_nothing_is_answered():
    said = identify(item(2, b"anna", b"anything", answer=True), None)

    assert not said.refusal
    assert said.answer is None


def test_a_user_with_the_right_passcode_goes_on():
    said = identify(item(2, b"anna", PASSCODE.encode()), knows_anna)

    assert not said.refusal
    assert said.user_name == "anna"
    assert said.answer is None


def test_a_positive_response_is_an_empty_item():
    said = identify(item(2, b"anna", PASSCODE.encode(), answer=True), knows_anna)

    assert said.answer is not None
    assert said.answer.from_primitive().encode() == b"\x59\x00\x00\x02\x00\x00"


@pytest.mark.parametrize("passcode", [b"open says me", b""])
def test_a_wrong_passcode_is_refused_and_never_repeated(passcode):
    said = identify(item(2, b"anna", passcode, answer=True), knows_anna)

    assert "'anna'" in said.refusal
    assert '{ name = "anna", password_hash = "..." }' in said.refusal
    assert "says" not in said.refusal
    assert said.answer is None


def test_a_user_name_alone_comes_without_passcode():
    seen = []

    identify(item(1, b"anna", b"ignored"), lambda name, code: seen.append((name, code)) or True)

    assert seen == [("anna", "")]
    assert "without a passcode" in identify(item(1, b"anna"), knows_anna).refusal


def test_whoever_names_no_user_is_told_to():
    assert "it names no user" in identify(None, knows_anna).refusal


@pytest.mark.parametrize(
    ("kind", "name"),
    [(3, "a Kerberos ticket"), (4, "a SAML assertion"), (5, "a JSON Web Token")],
)
def test_identities_that_are_not_checked_here_are_refused_by_name(kind, name):
    said = identify(item(kind, b"anna", PASSCODE.encode()), knows_anna)

    assert name in said.refusal
    assert "type 2" in said.refusal


def test_bytes_that_are_no_text_are_refused():
    assert "not UTF-8" in identify(item(2, b"\xff\xfe", b"x"), knows_anna).refusal
    assert "not UTF-8" in identify(item(2, b"anna", b"\xff"), knows_anna).refusal


def test_a_name_that_a_passcode_ran_into_is_not_repeated():
    said = identify(item(2, b"anna\x00\x0bopen sesame"), knows_anna)

    assert "control characters" in said.refusal
    assert "anna" not in said.refusal
    assert "sesame" not in said.refusal


def test_an_endless_name_is_cut_in_the_refusal():
    assert len(identify(item(2, b"n" * 60_000, b"x"), knows_anna).refusal) < 500
