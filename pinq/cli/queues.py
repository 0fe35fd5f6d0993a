"""``pinq queues``: the queues as a whole."""

from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from pinq.cli.command import Command, Group, json_option, pass_settings, queue_if_any
from pinq.cli.output import emit, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pinq.config import Settings
    from pinq.queue.contract import Queue
    from pinq.queue.model import Controls, Counts


@click.group(cls=Group, short_help="Show, pause, limit and delete queues.")
def command() -> None:
    """Show the queues, and tell them what to do; each pipeline has one.

    What a queue is told is kept with it: all workers obey at once, and those that start
    later too.
    """


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
    shown = _all(settings)
    if as_json:
        for name, (count, controls) in shown.items():
            emit(
                {
                    "pipeline": name,
                    "pending": count.pending,
                    "scheduled": count.scheduled,
                    "leased": count.leased,
                    "succeeded": count.succeeded,
                    "dead": count.dead,
                    "dead_by_class": dict(count.dead_by_class),
                    **asdict(controls),
                }
            )
        return
    table(
        (
            "pipeline",
            "pending",
            "scheduled",
            "leased",
            "succeeded",
            "dead",
            "dead by class",
            "controls",
        ),
        (
            (
                name,
                f"{count.pending:,}",
                f"{count.scheduled:,}",
                f"{count.leased:,}",
                f"{count.succeeded:,}",
                f"{count.dead:,}",
                ", ".join(f"{reason} {n:,}" for reason, n in sorted(count.dead_by_class.items())),
                _told(controls),
            )
            for name, (count, controls) in shown.items()
        ),
    )


pipeline_argument = click.argument("pipeline")


@command.command(
    "create",
    cls=Command,
    examples=(("A queue that no pipeline of the settings has", "pinq queues create crawled"),),
)
@pipeline_argument
@pass_settings
def create(settings: "Settings", pipeline: str) -> None:
    """Make a queue, where there is none of that name.

    Those of the settings' pipelines are made when they are first used.
    """
    from pinq.config import NAME, PipelineSettings
    from pinq.errors import InvalidInput
    from pinq.queue.urls import open_queue

    if not NAME.match(pipeline):
        raise InvalidInput(f"{pipeline!a} is no name of a queue: 1 to 64 of A-Z a-z 0-9 . _ -")
    source = settings.pipelines.get(pipeline, PipelineSettings(galaxy=pipeline)).event_source
    with closing(open_queue(settings.queue)) as queue:
        queue.declare(pipeline, source=source)


@command.command(
    "pause", cls=Command, examples=(("Until it is resumed", "pinq queues pause pins"),)
)
@pipeline_argument
@json_option
@pass_settings
def pause(settings: "Settings", pipeline: str, as_json: bool) -> None:
    """Lease no more jobs. What workers have in hand goes on; enqueuing goes on too."""
    _change(settings, pipeline, as_json, paused=True)


@command.command(
    "resume", cls=Command, examples=(("After a pause or a drain", "pinq queues resume pins"),)
)
@pipeline_argument
@json_option
@pass_settings
def resume(settings: "Settings", pipeline: str, as_json: bool) -> None:
    """End a pause and a drain. Limits stay."""
    _change(settings, pipeline, as_json, paused=False, draining=False)


@command.command(
    "drain", cls=Command, examples=(("Before it is deleted, say", "pinq queues drain pins"),)
)
@pipeline_argument
@json_option
@pass_settings
def drain(settings: "Settings", pipeline: str, as_json: bool) -> None:
    """Take no more jobs; those that are there are worked off, retries too."""
    _change(settings, pipeline, as_json, draining=True)


_KEEP = "keep"


class _Limit(click.ParamType[float | str | None]):
    """A number above zero, whole unless it has ``units`` (N/min and the like), or ``none``."""

    def __init__(self, name: str, units: "dict[str, int] | None" = None) -> None:
        self.name = name
        self.units = units

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str | None:
        if value in ("none", _KEEP):
            return None if value == "none" else _KEEP
        number, mark, unit = str(value).partition("/")
        try:
            limit = float(number) if self.units else int(number)
            if mark:
                limit /= (self.units or {})[unit]
        except (ValueError, KeyError):
            limit = -1
        if not 0 < limit < 1e9:
            units = ", or N/min, or N/h" if self.units else ""
            kind = "a number above 0" if self.units else "a whole number above 0"
            self.fail(f"{value!a} is neither {kind}{units} nor none", param, ctx)
        return limit


@command.command(
    "limit",
    cls=Command,
    examples=(
        (
            "Ten jobs a second over all workers, four at once",
            "pinq queues limit pins --rate 10 --in-flight 4",
        ),
        ("One in ten seconds", "pinq queues limit pins --rate 6/min"),
        ("No limit of the rate any more", "pinq queues limit pins --rate none"),
    ),
)
@pipeline_argument
@click.option(
    "--rate",
    type=_Limit("rate", {"s": 1, "min": 60, "h": 3600}),
    default=_KEEP,
    metavar="N",
    help="Lease at most N jobs a second on average (or N/min, N/h), over all workers.",
)
@click.option(
    "--in-flight",
    type=_Limit("in-flight"),
    default=_KEEP,
    metavar="N",
    help="Lease at most N jobs at once, over all workers.",
)
@json_option
@pass_settings
def limit(
    settings: "Settings", pipeline: str, rate: object, in_flight: object, as_json: bool
) -> None:
    """Limit how many jobs are leased, over all workers together.

    "none" lifts a limit; one that is not named stays. A worker holds whole batches, so an
    in-flight limit below its batch_size makes its batches smaller.
    """
    named = {"rate": rate, "in_flight": in_flight}
    changes = {name: value for name, value in named.items() if value != _KEEP}
    if not changes:
        raise click.UsageError("name --rate, --in-flight or both")
    _change(settings, pipeline, as_json, **changes)


@command.command(
    "delete",
    cls=Command,
    examples=(
        ("One whose jobs have all succeeded", "pinq queues delete crawled"),
        ("With all that is in it", "pinq queues delete crawled --force"),
    ),
)
@pipeline_argument
@click.option("--force", is_flag=True, help="Delete jobs that have not succeeded, too.")
@pass_settings
def delete(settings: "Settings", pipeline: str, force: bool) -> None:
    """Delete a queue and its jobs' history. Stored signals and events stay."""
    with _opened(settings, pipeline) as queue:
        deleted = queue.drop(pipeline, force=force)
    click.echo(f"{pipeline} deleted, with {deleted:,} jobs")


def _change(settings: "Settings", pipeline: str, as_json: bool, **changes: object) -> None:
    from dataclasses import replace

    with _opened(settings, pipeline) as queue:
        controls = replace(queue.controls(pipeline), **changes)  # type: ignore[arg-type]
        queue.control(pipeline, controls)
    if as_json:
        emit({"pipeline": pipeline, **asdict(controls)})
    else:
        click.echo(f"{pipeline}: {_told(controls) or 'no limits'}")


@contextmanager
def _opened(settings: "Settings", pipeline: str) -> "Iterator[Queue]":
    """The queue's database, if it has a queue of that name or the settings a pipeline."""
    from pinq.queue.urls import open_queue, queue_exists

    if not queue_exists(settings.queue):
        settings.pipeline(pipeline)  # to look must not make a database
    with closing(open_queue(settings.queue)) as queue:
        if pipeline not in queue.queues():
            queue.declare(pipeline, source=settings.pipeline(pipeline).event_source)
        yield queue


def _told(controls: "Controls") -> str:
    told = [name for name in ("paused", "draining") if getattr(controls, name)]
    if controls.rate is not None:
        told.append(f"{controls.rate:g}/s")
    if controls.in_flight is not None:
        told.append(f"{controls.in_flight} at once")
    return ", ".join(told)


def _all(settings: "Settings") -> "dict[str, tuple[Counts, Controls]]":
    """Those of the settings and those of the database, by name."""
    from pinq.queue.model import Controls, Counts

    found = {name: (Counts(), Controls()) for name in settings.pipelines}
    with queue_if_any(settings) as queue:
        if queue is not None:
            found |= {name: (queue.count(name), queue.controls(name)) for name in queue.queues()}
    return dict(sorted(found.items()))
