"""Every error of the model side says whether trying again can help."""

from __future__ import annotations

from collections.abc import Iterator

from model import errors
from model.errors import ModelError, PackageFault


def descendants(root: type[ModelError]) -> Iterator[type[ModelError]]:
    for child in root.__subclasses__():
        yield child
        yield from descendants(child)


def test_every_class_says_for_itself_whether_it_is_retryable():
    silent = [kind.__name__ for kind in descendants(ModelError) if "retryable" not in vars(kind)]

    assert silent == []


def test_only_a_full_device_and_an_absent_server_are_worth_another_try():
    assert {kind.__name__ for kind in descendants(ModelError) if kind.retryable} == {
        "DeviceOutOfMemory",
        "RemoteUnavailable",
    }


def test_tree_in_the_module_docstring_names_every_public_class():
    public = {kind.__name__ for kind in descendants(ModelError) if kind.__name__[0] != "_"}

    assert errors.__doc__ is not None
    assert {name for name in public if name not in errors.__doc__} == set()


def test_listed_faults_are_in_the_message_and_in_the_record():
    error = PackageFault("model package x", ["a: wrong", "b: wrong"])

    assert str(error) == "model package x: 2 faults: a: wrong; b: wrong"
    assert error.faults == ("a: wrong", "b: wrong")
