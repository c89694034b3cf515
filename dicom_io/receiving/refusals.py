"""Reports of requests turned away, so few that a peer calling without end cannot flood anybody.

Owns which report is told and which is only counted. Must not know why a request was refused, nor
where reports go.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

REPORT_EVERY_SECONDS = 60.0
"""A misconfigured modality tries again every few seconds, for days."""

MAXIMUM_KINDS = 1024
"""Different refusals remembered at once; a caller may invent AE titles without end."""

TOO_MANY_KINDS = (
    f"more than {MAXIMUM_KINDS} different requests were refused within a minute, this among them: "
    "find out what scans this port"
)


@dataclass(frozen=True, slots=True)
class RefusalReport:
    """A request turned away, as the administrator hears of it."""

    calling_ae_title: str
    """Empty when the connection was closed before it could tell."""
    called_ae_title: str
    address: str
    reason: str
    """Why, and what would admit it."""


class RefusalReports:
    """Lets the first of equal reports through, then one a minute with the number left out.

    Parameters
    ----------
    tell : callable
        Receives the reports let through; called by the thread that reports.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self, tell: Callable[[RefusalReport], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._told_at: dict[RefusalReport, float] = {}
        self._left_out: dict[RefusalReport, int] = {}

    def add(self, report: RefusalReport) -> None:
        """Tell this report, or count it where an equal one was told less than a minute ago."""
        now = self._clock()
        with self._lock:
            kind = self._kind_of(report, now)
            told_at = self._told_at.get(kind)
            if told_at is not None and now - told_at < REPORT_EVERY_SECONDS:
                self._left_out[kind] = self._left_out.get(kind, 0) + 1
                return
            self._told_at[kind] = now
            left_out = self._left_out.pop(kind, 0)
        self._tell(_counted(report, kind.reason, left_out))

    def _kind_of(self, report: RefusalReport, now: float) -> RefusalReport:
        if report in self._told_at:
            return report
        if len(self._told_at) >= MAXIMUM_KINDS:
            self._forget_before(now - REPORT_EVERY_SECONDS)
        if len(self._told_at) < MAXIMUM_KINDS:
            return report
        return RefusalReport("", "", "", TOO_MANY_KINDS)

    def _forget_before(self, instant: float) -> None:
        for kind in [kind for kind, told_at in self._told_at.items() if told_at <= instant]:
            del self._told_at[kind]
            self._left_out.pop(kind, None)


def _counted(report: RefusalReport, reason: str, left_out: int) -> RefusalReport:
    more = f" ({left_out} more like it since the last report)" if left_out else ""
    return RefusalReport(
        report.calling_ae_title, report.called_ae_title, report.address, f"{reason}{more}"
    )
