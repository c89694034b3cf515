"""Every error says for itself whether doing the same again can help."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator

import pytest

from dicom_io.errors import MedimgdError

_MODULES = ("dicom_io.errors", "storage.errors", "model.errors", "daemon.errors")


def _tree(root: type[MedimgdError]) -> Iterator[type[MedimgdError]]:
    yield root
    for branch in root.__subclasses__():
        yield from _tree(branch)


def _classes() -> list[type[MedimgdError]]:
    for module in _MODULES:
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    return sorted(set(_tree(MedimgdError)), key=lambda each: each.__qualname__)


@pytest.mark.parametrize("error", _classes(), ids=lambda each: each.__qualname__)
def test_every_error_class_says_itself_whether_it_is_retryable(error: type[MedimgdError]) -> None:
    assert isinstance(vars(error).get("retryable"), bool), (
        f"{error.__module__}.{error.__qualname__} inherits `retryable`: say it in the class"
    )


@pytest.mark.parametrize("error", _classes(), ids=lambda each: each.__qualname__)
def test_every_error_class_says_what_it_means(error: type[MedimgdError]) -> None:
    assert (vars(error).get("__doc__") or "").strip()
