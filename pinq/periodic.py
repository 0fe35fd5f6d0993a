"""Periodic jobs: when one falls due, as Debian's cron has it, and what may be said of it."""

import json
import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

from pinq.errors import ConfigError
from pinq.nearest import nearest

if TYPE_CHECKING:
    from pinq.config import PeriodicSettings

_QUEUE = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}\Z")  # as dramatiq has it
_FIELDS = "minute hour day-of-month month day-of-week"
# What is right, by the words of cronsim's error.
_RANGES = {
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31, L (the last) or LW (the last weekday), and must come in its months",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 or SUN-SAT (0 and 7 are Sunday), 5L (the last Friday) or 5#1 (the first)",
}


class Schedule:
    """A cron expression in a time zone.

    Raises:
        ValueError: it is no such expression; the message says what would be.
        LookupError: there is no such time zone.
    """

    def __init__(self, cron: str, timezone: str = "UTC") -> None:
        self._cron = cron
        self._zone = _zone(timezone)
        # A sixth field would be seconds, and a tick is a minute.
        if (fields := len(cron.split())) != 5:
            raise ValueError(f"should have five fields ({_FIELDS}), not {fields}")
        try:
            never = next(self.ticks(0), None) is None
        except CronSimError as error:
            field = str(error).removeprefix("Bad ")
            raise ValueError(f"has a bad {field}; it is {_RANGES.get(field, 'wrong')}") from None
        if never:
            raise ValueError("never falls due")

    def ticks(self, after_ms: int) -> Iterator[int]:
        """The times at which it falls due after ``after_ms``, in order, in milliseconds.

        Where clocks go forward, a fixed time that is skipped falls due right after; where they
        go back, one that comes twice falls due the first time. What has a ``*`` as its minute
        or hour goes by the time that passes.
        """
        last_ms = after_ms
        for at in CronSim(self._cron, datetime.fromtimestamp(after_ms / 1000, self._zone)):
            at_ms = int(at.timestamp()) * 1000
            # In the hour that comes twice, cronsim begins with that hour's first time round.
            if at_ms > last_ms:
                yield at_ms
                last_ms = at_ms


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # also where no time zones are installed
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # as "../x" and "Europe" have it
        raise LookupError(name) from error


def check(entry: "PeriodicSettings", pipelines: Collection[str], where: str) -> None:
    """Refuse an entry of the settings that could not be kept.

    Raises:
        ConfigError: it begins with ``where`` and says what would do.
    """
    try:
        Schedule(entry.cron, entry.timezone)
    except ValueError as error:
        raise ConfigError(
            f'{where}.cron = {entry.cron!r} {error}; for example "0 3 * * *", daily at 3'
        ) from None
    except LookupError:
        known = available_timezones()
        hint = nearest(entry.timezone, known) or '; for example "Europe/Paris"'
        if not known:
            hint = ": none but UTC are installed; `pip install tzdata`"
        raise ConfigError(f"{where}.timezone = {entry.timezone!r} is no time zone{hint}") from None
    if (entry.uri is None) == (entry.actor is None):
        raise ConfigError(
            f"{where} needs a uri, for an image, or an actor, for a message: one of the two"
        )
    if entry.priority is not None and not 1 <= entry.priority <= 9:
        raise ConfigError(f"{where}.priority = {entry.priority} should be 1 (first) to 9")
    (_check_image if entry.actor is None else _check_message)(entry, pipelines, where)


def _check_image(entry: "PeriodicSettings", pipelines: Collection[str], where: str) -> None:
    if entry.pipeline not in pipelines:
        raise ConfigError(
            f"{where}.pipeline = {entry.pipeline!r} is no pipeline"
            f"{nearest(entry.pipeline, pipelines)}; the settings have: "
            f"{', '.join(sorted(pipelines))}"
        )
    for key, default in (("queue", "default"), ("args", ()), ("kwargs", {})):
        if getattr(entry, key) != default:
            raise ConfigError(f"{where}.{key} goes with an actor, and this has a uri")


def _check_message(entry: "PeriodicSettings", pipelines: Collection[str], where: str) -> None:
    if not entry.actor:
        raise ConfigError(f"{where}.actor is empty")
    if entry.pipeline != "default":
        raise ConfigError(f"{where}.pipeline goes with a uri, and this has an actor")
    if entry.queue in pipelines:
        raise ConfigError(
            f"{where}.queue = {entry.queue!r} is a pipeline's, whose worker takes images only; "
            "name the queue of your actor"
        )
    if not _QUEUE.match(entry.queue):
        raise ConfigError(
            f"{where}.queue = {entry.queue!r} is no name of a queue; use 1 to 64 of "
            "A-Z a-z 0-9 . _ -, a letter or _ first"
        )
    try:
        json.dumps([entry.args, dict(entry.kwargs)])
    except TypeError as error:
        raise ConfigError(f"{where}: args and kwargs are sent as JSON, but {error}") from None
