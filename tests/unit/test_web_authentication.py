"""Passwords are stored hashed and compared safely."""

from __future__ import annotations

import base64

import pytest

from daemon.passwords import hash_password, password_matches
from daemon.web.authentication import credentials_of


def test_a_password_matches_its_own_hash_only() -> None:
    stored = hash_password("correct horse")

    assert password_matches("correct horse", stored)
    assert not password_matches("correct horses", stored)
    assert "correct" not in stored


def test_two_hashes_of_one_password_differ() -> None:
    assert hash_password("x") != hash_password("x")


@pytest.mark.parametrize("stored", ["", "scrypt$zz$00", "md5$00$00", "scrypt$00"])
def test_a_malformed_hash_matches_nothing(stored: str) -> None:
    assert not password_matches("", stored)


def test_basic_credentials_are_decoded() -> None:
    header = "Basic " + base64.b64encode(b"reader:a:b").decode()

    assert credentials_of(header) == ("reader", "a:b")


@pytest.mark.parametrize("header", ["", "Bearer x", "Basic !!", "Basic " + "YQ=="])
def test_anything_else_gives_no_credentials(header: str) -> None:
    assert credentials_of(header) is None
