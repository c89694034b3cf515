"""How values are worded on the page: names, dates, ages, flags. Pure functions, no markup."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from daemon.worklist.flags import FlagValues

FLAG_MEANINGS = MappingProxyType(
    {
        FlagValues.POSITIVE: "A finding is above its threshold",
        FlagValues.UNDETERMINED: "A score lies in the model's uncertain band",
        FlagValues.FAILED: "An analysis was given up; nothing is known",
        FlagValues.HELD: "Waits for a person; nothing was analysed",
        FlagValues.REFUSED: "A model abstains; nothing is known",
        FlagValues.PENDING: "An answer is still to come",
        FlagValues.UNMATCHED: "No installed model reads this study; nothing is known",
        FlagValues.NEGATIVE: "No finding above its threshold; not a clean bill of health",
    }
)


def person_name(value: str) -> str:
    """Return a DICOM person name as people write it, all its representations (PS3.5 6.2.1).

    ``Yamada^Tarou=山田^太郎`` becomes ``Yamada, Tarou (山田, 太郎)``; empty when absent.
    """
    groups = [_group(group) for group in value.split("=")]
    shown = [group for group in groups if group]
    if not shown:
        return ""
    return shown[0] if len(shown) == 1 else f"{shown[0]} ({'; '.join(shown[1:])})"


def _group(group: str) -> str:
    parts = [part.strip() for part in group.split("^")]
    family, rest = parts[0], [part for part in parts[1:] if part]
    return ", ".join(part for part in (family, " ".join(rest)) if part)


def dicom_date(value: str) -> str:
    """Return ``20240506`` as ``2024-05-06``; anything else as it came."""
    if len(value) == 8 and value.isascii() and value.isdigit():
        return f"{value[:4]}-{value[4:6]}-{value[6:]}"
    return value


def local_time(moment: datetime) -> str:
    """Return an instant in this host's zone, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def machine_time(moment: datetime) -> str:
    """Return an instant as ISO 8601 in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def span(seconds: float) -> str:
    """Return a duration in its two largest units; below a minute to a tenth of a second."""
    whole = max(int(seconds), 0)
    for size, unit, smaller, smaller_unit in _UNITS:
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{max(seconds, 0.0):.1f} s"


def age(moment: datetime, now: datetime) -> str:
    """Return how long ago an instant was."""
    elapsed = now - moment
    if elapsed < timedelta(minutes=1):
        return "just now"
    minutes = int(elapsed.total_seconds() // 60)
    if minutes < 60:
        return f"{minutes} min ago"
    return f"{span(elapsed.total_seconds())} ago"


def certainty(percent: float | None) -> str:
    """Return a certainty as the report states it."""
    return "" if percent is None else f"{percent:g} %"


def file_size(size: int) -> str:
    """Return a number of bytes in KiB or MiB."""
    return f"{size / 1024:.1f} KiB" if size < 1024 * 1024 else f"{size / 1024 / 1024:.1f} MiB"
