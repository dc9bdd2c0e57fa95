"""Windows begin and end where the customer's clock says, over changes of clocks and ends of months."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.database.engine import Engine


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


CASES = [
    # a half-hour zone: its hours begin at half past, its days at 18:30 of the day before
    ("minute", "Asia/Kolkata", "2026-03-01 10:17:31", "2026-03-01 10:17", "2026-03-01 10:18"),
    ("hour", "Asia/Kolkata", "2026-03-01 10:17", "2026-03-01 09:30", "2026-03-01 10:30"),
    ("day", "Asia/Kolkata", "2026-03-01 18:29:59", "2026-02-28 18:30", "2026-03-01 18:30"),
    ("day", "Asia/Kolkata", "2026-03-01 18:30", "2026-03-01 18:30", "2026-03-02 18:30"),
    ("month", "Asia/Kolkata", "2026-02-28 18:29", "2026-01-31 18:30", "2026-02-28 18:30"),
    ("month", "Asia/Kolkata", "2026-02-28 18:30", "2026-02-28 18:30", "2026-03-31 18:30"),
    # clocks go forward on 8 March 2026: a day of 23 hours
    ("day", "America/New_York", "2026-03-08 12:00", "2026-03-08 05:00", "2026-03-09 04:00"),
    ("hour", "America/New_York", "2026-03-08 07:30", "2026-03-08 07:00", "2026-03-08 08:00"),
    # and back on 1 November: 25 hours, and the hour that comes twice is two windows
    ("day", "America/New_York", "2026-11-01 12:00", "2026-11-01 04:00", "2026-11-02 05:00"),
    ("hour", "America/New_York", "2026-11-01 05:30", "2026-11-01 05:00", "2026-11-01 06:00"),
    ("hour", "America/New_York", "2026-11-01 06:30", "2026-11-01 06:00", "2026-11-01 07:00"),
    ("minute", "America/New_York", "2026-11-01 06:30:59", "2026-11-01 06:30", "2026-11-01 06:31"),
    ("month", "America/New_York", "2026-11-15 00:00", "2026-11-01 04:00", "2026-12-01 05:00"),
    ("month", "America/New_York", "2026-03-31 23:59", "2026-03-01 05:00", "2026-04-01 04:00"),
    # ends of months
    ("month", "UTC", "2026-01-31 23:59:59", "2026-01-01 00:00", "2026-02-01 00:00"),
    ("month", "UTC", "2028-02-29 12:00", "2028-02-01 00:00", "2028-03-01 00:00"),
    ("month", "UTC", "2026-12-31 23:59:59", "2026-12-01 00:00", "2027-01-01 00:00"),
    ("day", "UTC", "2026-12-31 23:59:59", "2026-12-31 00:00", "2027-01-01 00:00"),
    # where midnight itself is skipped the day begins at one, and ends at the next midnight all the same
    ("day", "America/Havana", "2026-03-08 12:00", "2026-03-08 05:00", "2026-03-09 04:00"),
    # and where it comes twice the day begins at the first
    ("day", "America/Havana", "2026-11-01 03:59", "2026-10-31 04:00", "2026-11-01 04:00"),
    ("day", "America/Havana", "2026-11-01 04:30", "2026-11-01 04:00", "2026-11-02 05:00"),
    ("day", "America/Havana", "2026-11-01 05:30", "2026-11-01 04:00", "2026-11-02 05:00"),
    ("month", "America/Havana", "2026-11-01 04:30", "2026-11-01 04:00", "2026-12-01 05:00"),
    ("month", "America/Havana", "2026-10-15 00:00", "2026-10-01 04:00", "2026-11-01 04:00"),
    ("day", "Atlantic/Azores", "2026-10-25 00:30", "2026-10-25 00:00", "2026-10-26 01:00"),
]


@pytest.mark.parametrize(("per", "zone", "at", "start", "end"), CASES)
def test_window_is_that_of_the_zone(  # noqa: PLR0917 - a row of the table
    module_engine: Engine, per: str, zone: str, at: str, start: str, end: str
) -> None:
    found = module_engine.query(
        "select s, gateway.window_end(%(per)s, s, %(zone)s)"
        " from gateway.window_start(%(per)s, %(at)s, %(zone)s) as s".replace("%(per)s", f"'{per}'")
        .replace("%(zone)s", f"'{zone}'")
        .replace("%(at)s", f"'{at}+00'::timestamptz")
    )
    assert found == [(utc(start), utc(end))]


@pytest.mark.parametrize(
    "zone",
    ["UTC", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Havana"],
)
@pytest.mark.parametrize("per", ["hour", "day", "month"])
def test_windows_tile_the_year(module_engine: Engine, zone: str, per: str) -> None:
    rows = module_engine.query(
        "select t, gateway.window_start(%s, t, %s), gateway.window_end(%s, gateway.window_start(%s,"
        " t, %s), %s)"
        " from generate_series('2026-01-01 00:10+00'::timestamptz, '2026-12-31', '7 hours') as t",
        per, zone, per, per, zone, zone,
    )  # fmt: skip
    assert len(rows) > 1000
    ends: dict[datetime, datetime] = {}
    for at, start, end in rows:
        assert start <= at < end
        assert ends.setdefault(start, end) == end
        assert end - start <= timedelta(days=31, hours=1)
    starts = sorted(ends)
    if per != "hour":
        assert all(ends[start] == following for start, following in itertools.pairwise(starts))


@pytest.mark.parametrize("at", ["2026-05-03 12:14:59.999999", "2026-05-03 12:00"])
def test_rollups_are_of_quarter_hours(module_engine: Engine, at: str) -> None:
    assert module_engine.value(f"select gateway.rollup_bucket('{at}+00')") == utc("2026-05-03 12:00")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "UTC; drop schema gateway"])
def test_a_zone_that_is_none_is_refused(module_engine: Engine, zone: str) -> None:
    import psycopg

    customer = module_engine.customer()
    with pytest.raises(psycopg.errors.CheckViolation):
        module_engine.run("update gateway.customers set time_zone = %s where id = %s", zone, customer.id)
