"""Users of senders: who is admitted, and what a flood of guesses costs."""

from __future__ import annotations

import threading

import pytest

from daemon import users as module
from daemon.passwords import hash_password
from daemon.receiver_settings import UserSection
from daemon.users import RIGHT_SECONDS, WRONG_SECONDS, Users
from dicom_io.errors import IdentityUnchecked

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def sections() -> list[UserSection]:
    return [
        UserSection(name="ct1", password_hash=hash_password(PASSWORD)),
        UserSection(name="old-film-reader"),
    ]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every password that was hashed, in order."""
    seen: list[str] = []
    original = module.password_matches

    def counting(password: str, stored: str) -> bool:
        seen.append(password)
        return original(password, stored)

    monkeypatch.setattr(module, "password_matches", counting)
    return seen


def test_the_right_password_admits_and_no_other(sections) -> None:
    users = Users(sections)

    assert users.admits("ct1", PASSWORD)
    assert not users.admits("ct1", "correct horses")
    assert not users.admits("ct1", "")
    assert not users.admits("ct2", PASSWORD)
    assert not users.admits("ct1c", PASSWORD[1:])


def test_a_user_without_a_password_is_admitted_by_name(sections, hashed) -> None:
    assert Users(sections).admits("old-film-reader", "")
    assert hashed == []


def test_an_unknown_user_costs_the_same_hash(sections, hashed) -> None:
    Users(sections).admits("nobody", "guess")

    assert hashed == ["guess"]


def test_what_was_found_is_remembered_for_a_while(sections, hashed) -> None:
    now = [0.0]
    users = Users(sections, clock=lambda: now[0])

    for _ in range(5):
        assert users.admits("ct1", PASSWORD)
        assert not users.admits("ct1", "wrong")
    assert hashed == [PASSWORD, "wrong"]

    now[0] = WRONG_SECONDS
    assert not users.admits("ct1", "wrong")
    assert users.admits("ct1", PASSWORD)
    assert hashed == [PASSWORD, "wrong", "wrong"]

    now[0] = RIGHT_SECONDS
    assert users.admits("ct1", PASSWORD)
    assert hashed[3:] == [PASSWORD]


def test_what_is_remembered_is_bounded_and_holds_no_password(sections, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_REMEMBERED", 3)
    users = Users(sections)

    for guess in range(5):
        users.admits("ct1", f"guess {guess}")

    assert len(users._remembered) <= 3
    assert b"guess" not in b"".join(users._remembered)


def test_checks_run_one_at_a_time_and_a_flood_is_told_to_come_back(sections, monkeypatch) -> None:
    # given a check that takes longer than anybody may wait
    started, go_on = threading.Event(), threading.Event()

    def slow(password: str, stored: str) -> bool:
        started.set()
        return go_on.wait(10)

    monkeypatch.setattr(module, "password_matches", slow)
    monkeypatch.setattr(module, "LONGEST_WAIT_SECONDS", 0.05)
    users = Users(sections)
    first = threading.Thread(target=users.admits, args=("ct1", "first"))
    first.start()
    assert started.wait(10)

    # when another user comes meanwhile, then it is told so
    with pytest.raises(IdentityUnchecked, match="send again later"):
        users.admits("ct1", "second")

    # and is checked once there is room
    go_on.set()
    first.join()
    assert users.admits("ct1", "second")
