"""``pinq queues``: the queues as a whole."""

from contextlib import closing
from typing import TYPE_CHECKING

import click

from pinq.cli.command import Command, Group, json_option, pass_settings
from pinq.cli.output import emit, table

if TYPE_CHECKING:
    from pinq.config import Settings
    from pinq.queue.model import Counts


@click.group(cls=Group, short_help="Show the queues.")
def command() -> None:
    """Show the queues; each pipeline has one."""


@command.command(
    "ls",
    cls=Command,
    examples=(
        ("How many jobs are in each state", "pinq queues ls"),
        ("For a script", "pinq queues ls --json"),
    ),
)
@json_option
@pass_settings
def ls(settings: "Settings", as_json: bool) -> None:
    """List the queues with their number of jobs in each state.

    Scheduled are the pending jobs that are not due yet.
    """
    counts = _counts(settings)
    if as_json:
        for name, count in counts.items():
            emit(
                {
                    "pipeline": name,
                    "pending": count.pending,
                    "scheduled": count.scheduled,
                    "leased": count.leased,
                    "succeeded": count.succeeded,
                    "dead": count.dead,
                    "dead_by_class": dict(count.dead_by_class),
                }
            )
        return
    table(
        ("pipeline", "pending", "scheduled", "leased", "succeeded", "dead", "dead by class"),
        (
            (
                name,
                f"{count.pending:,}",
                f"{count.scheduled:,}",
                f"{count.leased:,}",
                f"{count.succeeded:,}",
                f"{count.dead:,}",
                ", ".join(f"{reason} {n:,}" for reason, n in sorted(count.dead_by_class.items())),
            )
            for name, count in counts.items()
        ),
    )


def _counts(settings: "Settings") -> "dict[str, Counts]":
    """Those of the settings and those of the database, by name."""
    from pinq.queue.model import Counts
    from pinq.queue.urls import open_queue, queue_exists

    counts = {name: Counts() for name in settings.pipelines}
    if queue_exists(settings.queue):
        with closing(open_queue(settings.queue)) as queue:
            counts |= {name: queue.count(name) for name in queue.queues()}
    return dict(sorted(counts.items()))
