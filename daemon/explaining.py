"""Explanations and regions of what a worker found, asked of the predictor that found it.

Owns the rule that a job which took a worker down is asked for neither: its finding matters more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dicom_io.vocabulary import Finding
from model.explain import (
    Explicable,
    explain,
    explained_findings,
    looks_inside,
    unexplained,
)
from model.package import ModelPackage
from model.regions import detect, regions_are_asked, undetected
from model.runtimes.port import Predictor
from storage.endings import Analysed

_AFTER_CRASH = "a worker died over this analysis before; it was repeated without an explanation"
_NO_MAP_AFTER_CRASH = "a worker died over this analysis before; it was repeated without a map"


def is_explained(package: ModelPackage, findings: Sequence[Finding]) -> bool:
    """Return whether an explanation or a region of these findings is asked for."""
    return bool(explained_findings(findings)) or regions_are_asked(package, findings)


def explained_together(
    package: ModelPackage, predictor: Predictor, batch: Sequence[Analysed]
) -> list[Sequence[Analysed]]:
    """Return a batch in the parts that are explained in one go.

    Each input by itself where parts of it are covered, for hundreds of predictions: a batch of
    them may take longer than anything that computes.
    """
    if looks_inside(package, predictor):
        return [batch]
    return [[each] for each in batch]


def with_explanations(
    package: ModelPackage, predictor: Predictor, batch: Sequence[Analysed]
) -> list[Analysed]:
    """Return analysed jobs of inputs of one shape, with what explains and places their findings."""
    sound = [each for each in batch if not each.job.crashes]
    explicable = [Explicable(each.job.tensor, each.findings) for each in sound]
    explanations = explain(package, predictor, explicable)
    detections = detect(package, predictor, explicable)
    explained = [
        replace(each, explanations=found, detection=detection)
        for each, found, detection in zip(sound, explanations, detections, strict=True)
    ]
    return explained + [
        replace(
            each,
            explanations=unexplained(each.findings, _AFTER_CRASH),
            detection=undetected(package, each.findings, _NO_MAP_AFTER_CRASH),
        )
        for each in batch
        if each.job.crashes
    ]
