"""``pinq jobs``: what is in the queues, one by one."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING

import click

from pinq.cli.command import Command, Group, json_option, pass_settings
from pinq.cli.output import brief, emit, job_record, location, note, table, when

if TYPE_CHECKING:
    from pinq.config import Settings
    from pinq.queue.contract import Queue
    from pinq.queue.model import Job

_LINES_SHOWN = 50
_STATES = ("pending", "leased", "succeeded", "dead")

pipeline_option = click.option("--pipeline", metavar="P", help="Only this pipeline. [default: all]")


@click.group(cls=Group, short_help="List, show and requeue jobs.")
def command() -> None:
    """List, show and requeue jobs. A job is one image in one pipeline."""


@command.command(
    "ls",
    cls=Command,
    examples=(
        ("What is dead, and why", "pinq jobs ls --state dead"),
        ("Everything, as JSON lines", "pinq jobs ls --json"),
    ),
)
@click.option("--state", type=click.Choice(_STATES), help="Only jobs in this state.")
@pipeline_option
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most so many. [default: 50; with --json all]",
)
@json_option
@pass_settings
def ls(
    settings: "Settings",
    state: str | None,
    pipeline: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List jobs in order of arrival."""
    from pinq.queue.model import State

    with ExitStack() as stack:
        queue = _open(settings, stack)
        if pipeline is not None:
            _named(settings, queue, pipeline)
        jobs: Iterator[Job] = iter(())
        if queue is not None:
            jobs = queue.scan(queue=pipeline, state=State(state) if state else None)
        if as_json:
            for job in islice(jobs, limit):
                emit(job_record(job))
            return
        shown = list(islice(jobs, limit or _LINES_SHOWN))
        if not shown:
            note("no jobs")
            return
        table(
            ("signature", "pipeline", "state", "attempts", "image", "last error"),
            (
                (
                    job.key,
                    job.queue,
                    job.state,
                    f"{job.attempts}/{job.max_attempts}",
                    location(job.uri),
                    f"{job.errors[-1].failure_class}: {brief(job.errors[-1].message)}"
                    if job.errors
                    else "",
                )
                for job in shown
            ),
        )
        if next(jobs, None) is not None:
            note(f"… and more; --limit N or --json shows them (these are {len(shown):,})")


@command.command(
    "show",
    cls=Command,
    examples=(
        ("One image's jobs, with every failed attempt", "pinq jobs show pin-417"),
        ("In one pipeline, as JSON", "pinq jobs show pin-417 --pipeline pins --json"),
    ),
)
@click.argument("signature")
@pipeline_option
@json_option
@pass_settings
def show(settings: "Settings", signature: str, pipeline: str | None, as_json: bool) -> int:
    """Show the jobs of a signature, with their errors."""
    with ExitStack() as stack:
        queue = _open(settings, stack)
        jobs = [
            job
            for name in _names(settings, queue, pipeline)
            if queue is not None
            for job in queue.lookup(name, [signature]).values()
        ]
    if not jobs:
        note(f"{brief(signature)}: no such job")
        return 1
    for job in jobs:
        if as_json:
            emit(job_record(job))
            continue
        click.echo(f"signature  {job.key}")
        click.echo(f"pipeline   {job.queue}")
        click.echo(f"state      {job.state}, {job.attempts} of {job.max_attempts} attempts")
        click.echo(f"image      {location(job.uri)}")
        click.echo(f"priority   {job.priority}")
        click.echo(f"enqueued   {when(job.enqueued_at_ms)}")
        if str(job.state) == "pending":
            click.echo(f"due        {when(max(job.run_at_ms, job.enqueued_at_ms))}")
        if job.finished_at_ms is not None:
            click.echo(f"finished   {when(job.finished_at_ms)}")
        for error in job.errors:
            click.echo(
                f"attempt {error.attempt}  {when(error.at_ms)}  "
                f"{error.failure_class}: {brief(error.message)}"
            )
    return 0


@command.command(
    "requeue",
    cls=Command,
    examples=(
        ("One", "pinq jobs requeue pin-417"),
        ("All that is dead in a pipeline", "pinq jobs requeue --all-dead --pipeline pins"),
    ),
)
@click.argument("signatures", nargs=-1, metavar="[SIGNATURE...]")
@click.option("--all-dead", is_flag=True, help="All dead jobs.")
@pipeline_option
@json_option
@pass_settings
def requeue(
    settings: "Settings",
    signatures: tuple[str, ...],
    all_dead: bool,
    pipeline: str | None,
    as_json: bool,
) -> int:
    """Make dead jobs pending again, with all their attempts.

    Exit code 1 if one of the signatures has no dead job.
    """
    if all_dead == bool(signatures):
        raise click.UsageError("name signatures, or give --all-dead")
    requeued = 0
    wanted = list(dict.fromkeys(signatures))
    dead: set[str] = set()
    with ExitStack() as stack:
        queue = _open(settings, stack)
        for name in _names(settings, queue, pipeline):
            if queue is None:
                break
            if wanted:
                dead |= _dead(queue, name, wanted)
            requeued += queue.requeue(name, keys=wanted or None)
    for signature in wanted:
        if signature not in dead:
            note(f"{brief(signature)}: no dead job")
    if as_json:
        emit({"requeued": requeued})
    else:
        click.echo(f"{requeued:,} requeued")
    return 1 if len(dead) < len(wanted) else 0


def _dead(queue: "Queue", pipeline: str, signatures: Sequence[str]) -> set[str]:
    found = queue.lookup(pipeline, signatures)
    return {key for key, job in found.items() if str(job.state) == "dead"}


def _open(settings: "Settings", stack: ExitStack) -> "Queue | None":
    """The queue, unless none has been made: to look must not make one."""
    from pinq.queue.urls import open_queue, queue_exists

    if not queue_exists(settings.queue):
        return None
    queue = open_queue(settings.queue)
    stack.callback(queue.close)
    return queue


def _names(settings: "Settings", queue: "Queue | None", pipeline: str | None) -> list[str]:
    if pipeline is not None:
        _named(settings, queue, pipeline)
        return [pipeline]
    return queue.queues() if queue is not None else []


def _named(settings: "Settings", queue: "Queue | None", pipeline: str) -> None:
    """Refuse a pipeline that neither the settings nor the database know."""
    if queue is None or pipeline not in queue.queues():
        settings.pipeline(pipeline)
