"""Reads the time of `--since`, and writes times for people."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from esper.errors import ConfigError

_AGO = re.compile(r"(\d{1,9})\s*([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def since(text: str, now: datetime) -> datetime:
    """Return the time of `--since`: an age, such as 90s, 10m, 2h or 3d, or a date and time of ISO 8601.

    A date and time without a zone is in UTC, as all times that esper prints.

    Raises:
        ConfigError: the text is neither.
    """
    try:
        if ago := _AGO.fullmatch(text.strip()):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        found = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError) as error:
        mend = "give an age, such as 90s, 10m, 2h or 3d, or a time, such as 2026-11-29T08:00"
        raise ConfigError("--since", text, mend) from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def iso(time_ns: int) -> str:
    """Return a Unix time in nanoseconds as ISO 8601 in UTC, with microseconds."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_ns // 1000)).isoformat()


def unix_ns(time: datetime) -> int:
    """Return the Unix time in nanoseconds of a time with a zone, within the 64 bits that OTLP has for it."""
    since_1970_ns = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    return min(max(0, since_1970_ns), 2**64 - 1)


def length(duration_ns: int) -> str:
    """Return a duration with three figures and its unit, at most 8 characters."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if duration_ns >= size:
            value = duration_ns / size
            if unit == "s" and value >= 1000:
                return f"{value / 60:.0f} min" if value < 600_000 else f"{value / 86400:.0f} d"
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{duration_ns} ns"
