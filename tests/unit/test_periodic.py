"""When cron expressions fall due; above all where clocks change."""

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest

from pinq.periodic import Schedule

BERLIN = ZoneInfo("Europe/Berlin")
# In Berlin clocks go from 2 to 3 on 29 March 2026, and from 3 to 2 on 25 October.
SPRING, AUTUMN = datetime(2026, 3, 29, tzinfo=BERLIN), datetime(2026, 10, 25, tzinfo=BERLIN)


def ms(at: datetime) -> int:
    return int(at.timestamp()) * 1000


def of_day(cron: str, day: datetime, zone: str = "Europe/Berlin") -> list[str]:
    """The times of that day at which it falls due, as its clocks show them, with their offset."""
    end = ms(day + timedelta(days=1))
    ticks = takewhile(lambda tick: tick < end, Schedule(cron, zone).ticks(ms(day) - 1))
    return [f"{datetime.fromtimestamp(tick / 1000, ZoneInfo(zone)):%H:%M%z}" for tick in ticks]


def test_a_tick_is_after_the_time_asked_for() -> None:
    at = ms(datetime(2026, 1, 1, 12, 0, tzinfo=UTC))
    schedule = Schedule("*/5 * * * *")
    assert next(schedule.ticks(at - 1)) == at
    assert next(schedule.ticks(at)) == at + 300_000
    assert next(schedule.ticks(at + 1)) == at + 300_000


def test_the_expression_is_read_in_its_time_zone() -> None:
    assert of_day("0 3 * * *", datetime(2026, 7, 1, tzinfo=BERLIN)) == ["03:00+0200"]
    assert of_day("0 3 * * *", datetime(2026, 1, 1, tzinfo=BERLIN)) == ["03:00+0100"]


def test_a_fixed_time_that_is_skipped_falls_due_right_after() -> None:
    assert of_day("30 2 * * *", SPRING) == ["03:00+0200"]
    assert of_day("15,45 2 * * *", SPRING) == ["03:00+0200"]


def test_a_fixed_time_that_comes_twice_falls_due_the_first_time() -> None:
    assert of_day("30 2 * * *", AUTUMN) == ["02:30+0200"]
    assert of_day("0 2,3 * * *", AUTUMN) == ["02:00+0200", "03:00+0100"]


def test_what_has_a_star_goes_by_the_time_that_passes() -> None:
    assert len(of_day("0 * * * *", SPRING)) == 23
    assert len(of_day("0 * * * *", AUTUMN)) == 25
    assert of_day("*/30 2 * * *", AUTUMN) == [
        "02:00+0200",
        "02:30+0200",
        "02:00+0100",
        "02:30+0100",
    ]


@pytest.mark.parametrize(
    "cron",
    ["30 2 * * *", "15,45 2 * * *", "*/20 * * * *", "0,30 1-3 * * *", "10 * * * *", "* 2 * * *"],
)
@pytest.mark.parametrize("day", [SPRING, AUTUMN], ids=["spring", "autumn"])
def test_it_does_not_matter_from_when_one_looks(cron: str, day: datetime) -> None:
    start, end = ms(day), ms(day + timedelta(days=1))
    schedule = Schedule(cron, "Europe/Berlin")
    ticks = list(islice(schedule.ticks(start), 300))
    assert ticks[-1] > end
    for after in range(start, end, 420_000):
        assert next(schedule.ticks(after)) == next(tick for tick in ticks if tick > after)


def test_midnight_may_be_what_is_skipped() -> None:
    day = datetime(2026, 4, 24, tzinfo=ZoneInfo("Africa/Cairo"))
    assert of_day("0 0 * * *", day, "Africa/Cairo") == ["01:00+0300"]


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 3 * *", "five fields .minute hour day-of-month month day-of-week., not 4"),
        ("0 0 3 * * *", "five fields .*, not 6"),
        ("@daily", "five fields .*, not 1"),
        ("61 * * * *", "bad minute; it is 0-59"),
        ("0 0 * * FRIDAY", "bad day-of-week; it is 0-7 or SUN-SAT"),
        ("0 0 30 2 *", "bad day-of-month; .* must come in its months"),
    ],
)
def test_a_bad_expression_is_told_what_is_right(cron: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schedule(cron)


@pytest.mark.parametrize("zone", ["Mars", "", "Europe", "../etc", "europe/berlin", "a\0b"])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(LookupError):
        Schedule("* * * * *", zone)
