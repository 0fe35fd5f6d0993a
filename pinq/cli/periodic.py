"""``pinq periodic``: what is enqueued by the clock."""

from typing import TYPE_CHECKING

import click

from pinq.cli.command import Command, Group, json_option, pass_settings
from pinq.cli.output import emit, note, table, when

if TYPE_CHECKING:
    from pinq.config import PeriodicSettings, Settings


@click.group(cls=Group, short_help="Show what is enqueued by the clock.")
def command() -> None:
    """Show the periodic jobs of the settings. Workers enqueue them."""


@command.command(
    "ls",
    cls=Command,
    examples=(
        ("What falls due next", "pinq periodic ls"),
        ("For a script", "pinq periodic ls --json"),
    ),
)
@json_option
@pass_settings
def ls(settings: "Settings", as_json: bool) -> None:
    """List the periodic jobs, the next first. Next is by this machine's clock."""
    ordered = sorted((_next_ms(entry), name, entry) for name, entry in settings.periodic.items())
    if as_json:
        for next_ms, name, entry in ordered:
            emit(_record(name, entry, next_ms))
    elif not ordered:
        note("no periodic jobs")
    else:
        table(
            ("name", "cron", "timezone", "next", "queue", "job"),
            (
                (
                    name,
                    entry.cron,
                    entry.timezone,
                    when(next_ms),
                    entry.queue if entry.uri is None else entry.pipeline,
                    entry.uri or entry.actor,
                )
                for next_ms, name, entry in ordered
            ),
        )


def _next_ms(entry: "PeriodicSettings") -> int:
    import time

    from pinq.periodic import Schedule

    return next(Schedule(entry.cron, entry.timezone).ticks(time.time_ns() // 1_000_000))


def _record(name: str, entry: "PeriodicSettings", next_ms: int) -> dict[str, object]:
    record: dict[str, object] = {
        "name": name,
        "cron": entry.cron,
        "timezone": entry.timezone,
        "next": when(next_ms),
        "priority": entry.priority,
    }
    if entry.uri is not None:
        return {**record, "pipeline": entry.pipeline, "uri": entry.uri}
    return {
        **record,
        "queue": entry.queue,
        "actor": entry.actor,
        "args": list(entry.args),
        "kwargs": dict(entry.kwargs),
    }
