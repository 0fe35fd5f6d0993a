"""``pinq jobs``: what is in the queues, one by one."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pinq.cli.command import Command, Group, json_option, pass_settings, queue_if_any
from pinq.cli.output import brief, emit, job_record, location, note, printable, table, tries, when
from pinq.cli.selection import chosen, selecting

if TYPE_CHECKING:
    from pinq.config import Settings
    from pinq.queue.contract import Queue
    from pinq.queue.model import Filter, Job

_LINES_SHOWN = 50
_PAGE = 1000
_GROUPS = ("state", "pipeline", "priority", "error")


@click.group(cls=Group, short_help="List, show, requeue, cancel and delete jobs.")
def command() -> None:
    """List, show, requeue, cancel and delete jobs. A job is one image in one pipeline."""


@command.command(
    "ls",
    cls=Command,
    examples=(
        ("What is dead, and why", "pinq jobs ls --state dead"),
        ("How much is dead of what", "pinq jobs ls --state dead --group-by error"),
        (
            "What came from one place and waits for its time",
            "pinq jobs ls --uri '*/crawl/*' --scheduled",
        ),
        ("Everything, as JSON lines", "pinq jobs ls --json"),
    ),
)
@selecting
@click.option(
    "--group-by",
    type=click.Choice(_GROUPS),
    help="Count them by state, pipeline, priority or last failure instead.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most so many. [default: 50; with --json all]",
)
@click.option("--after", metavar="C", default="", help="Go on where an earlier list ended.")
@json_option
@pass_settings
def ls(
    settings: "Settings",
    /,
    group_by: str | None,
    limit: int | None,
    after: str,
    as_json: bool,
    **options: Any,
) -> None:
    """List jobs in order of arrival; all, or those that match all options given."""
    wanted = chosen(**options)
    with queue_if_any(settings) as queue:
        _check(settings, queue, wanted)
        if queue is None:
            if not as_json:
                note("no jobs")
        elif group_by is not None:
            _show_groups(queue, wanted, group_by, as_json)
        else:
            _show_jobs(queue, wanted, limit, after, as_json)


def _show_groups(queue: "Queue", wanted: "Filter", group_by: str, as_json: bool) -> None:
    groups = queue.group("queue" if group_by == "pipeline" else group_by, wanted)
    if as_json:
        for name, count in groups.items():
            emit({group_by: name, "jobs": count})
    else:
        table((group_by, "jobs"), ((name, f"{count:,}") for name, count in groups.items()))


def _show_jobs(
    queue: "Queue", wanted: "Filter", limit: int | None, after: str, as_json: bool
) -> None:
    left = limit or (None if as_json else _LINES_SHOWN)
    shown: list[Job] = []
    next_page: str | None = after
    while next_page is not None and left != 0:
        page = queue.page(wanted, after=next_page, limit=min(left or _PAGE, _PAGE))
        next_page, left = page.continuation, left and left - len(page.jobs)
        if as_json:
            for job in page.jobs:
                emit(job_record(job))
        else:
            shown += page.jobs
    if not as_json and not shown:
        note("no jobs")
        return
    if not as_json:
        table(
            ("signature", "pipeline", "state", "attempts", "image", "last error"),
            (
                (
                    job.key,
                    job.queue,
                    job.state,
                    tries(job, "/"),
                    location(job.uri),
                    f"{job.errors[-1].failure_class}: {brief(job.errors[-1].message)}"
                    if job.errors
                    else "",
                )
                for job in shown
            ),
        )
    if next_page is not None and queue.page(wanted, after=next_page, limit=1).jobs:
        note(f"… and more; --limit N shows more, --after {next_page} goes on from here")


@command.command(
    "show",
    cls=Command,
    examples=(
        ("One image's jobs, with every failed attempt", "pinq jobs show pin-417"),
        ("In one pipeline, as JSON", "pinq jobs show pin-417 --pipeline pins --json"),
    ),
)
@click.argument("signature")
@click.option("--pipeline", metavar="P", help="Only this pipeline. [default: all]")
@json_option
@pass_settings
def show(settings: "Settings", signature: str, pipeline: str | None, as_json: bool) -> int:
    """Show the jobs of a signature, with their errors."""
    from pinq.queue.model import Filter

    with queue_if_any(settings) as queue:
        wanted = Filter(pipeline, [signature])
        _check(settings, queue, wanted)
        jobs = list(queue.scan(wanted)) if queue is not None else []
    if not jobs:
        note(f"{brief(signature)}: no such job")
        return 1
    for job in jobs:
        if as_json:
            emit(job_record(job))
            continue
        click.echo(f"signature  {job.key}")
        click.echo(f"pipeline   {job.queue}")
        click.echo(f"state      {job.state}, {tries(job, ' of ')} attempts")
        click.echo(f"image      {location(job.uri)}")
        click.echo(f"priority   {job.priority}")
        click.echo(f"enqueued   {when(job.enqueued_at_ms)}")
        if str(job.state) == "pending":
            click.echo(f"due        {when(max(job.run_at_ms, job.enqueued_at_ms))}")
        if job.finished_at_ms is not None:
            click.echo(f"finished   {when(job.finished_at_ms)}")
        for label, content in (("body", job.body), ("progress", job.progress)):
            if content:
                said = brief(content.decode("utf-8", "backslashreplace"))
                click.echo(f"{label:<10} {len(content):,} bytes: {said}")
        for line in job.status.splitlines():
            click.echo(f"status     {printable(line)}")
        for error in job.errors:
            click.echo(
                f"attempt {error.attempt}  {when(error.at_ms)}  "
                f"{error.failure_class}: {brief(error.message)}"
            )
    return 0


dry_run_option = click.option("--dry-run", is_flag=True, help="Only say how many.")


@command.command(
    "requeue",
    cls=Command,
    examples=(
        ("One", "pinq jobs requeue pin-417"),
        ("All that is dead in a pipeline", "pinq jobs requeue --all-dead --pipeline pins"),
        (
            "What a broken peer made fail, ten a second",
            "pinq jobs requeue --error fetch_transient --rate 10",
        ),
    ),
)
@selecting
@click.option("--all-dead", is_flag=True, help="All dead jobs.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Let N fall due a second. [default: all now]",
)
@dry_run_option
@json_option
@pass_settings
def requeue(
    settings: "Settings",
    /,
    all_dead: bool,
    rate: float | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Make dead jobs pending again, with all their attempts.

    Exit code 1 if one of the signatures has no dead job.
    """
    from pinq.queue.model import State

    def change(queue: "Queue", wanted: "Filter") -> int:
        return queue.requeue(wanted, rate=rate, dry_run=dry_run)

    wanted = _named(options, all_dead, "--all-dead").within((State.DEAD,))
    return _change(settings, wanted, change, "requeued", "no dead job", dry_run, as_json)


@command.command(
    "cancel",
    cls=Command,
    examples=(
        ("One", "pinq jobs cancel pin-417"),
        ("What waits for its time", "pinq jobs cancel --scheduled --pipeline crawled"),
    ),
)
@selecting
@click.option("--all", "all_jobs", is_flag=True, help="All pending and leased jobs.")
@dry_run_option
@json_option
@pass_settings
def cancel(
    settings: "Settings", /, all_jobs: bool, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Make pending and leased jobs dead; "pinq jobs requeue" brings them back.

    What a worker has in hand, it computes to the end; its answer is refused. Exit
    code 1 if one of the signatures has no such job.
    """
    from pinq.queue.model import State

    def change(queue: "Queue", wanted: "Filter") -> int:
        return queue.cancel(wanted, dry_run=dry_run)

    wanted = _named(options, all_jobs, "--all").within((State.PENDING, State.LEASED))
    return _change(settings, wanted, change, "cancelled", "no live job", dry_run, as_json)


@command.command(
    "delete",
    cls=Command,
    examples=(
        ("One, to enqueue it anew", "pinq jobs delete pin-417"),
        ("What is dead for good", "pinq jobs delete --state dead --error fetch_gone"),
    ),
)
@selecting
@click.option("--all", "all_jobs", is_flag=True, help="All jobs, in whatever state.")
@dry_run_option
@json_option
@pass_settings
def delete(
    settings: "Settings", /, all_jobs: bool, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Forget jobs. Stored signals and events stay.

    Exit code 1 if one of the signatures has no such job.
    """

    def change(queue: "Queue", wanted: "Filter") -> int:
        return queue.delete(wanted, dry_run=dry_run)

    wanted = _named(options, all_jobs, "--all")
    return _change(settings, wanted, change, "deleted", "no such job", dry_run, as_json)


def _named(options: dict[str, Any], everything: bool, flag: str) -> "Filter":
    """The filter; refuse none at all unless everything is meant, and both together."""
    from pinq.queue.model import EVERYTHING, Filter

    wanted = chosen(**options)
    if everything == (wanted not in (EVERYTHING, Filter(wanted.queue))):
        raise click.UsageError(f"name signatures or options that choose jobs, or give {flag}")
    return wanted


def _change(
    settings: "Settings",
    wanted: "Filter",
    change: "Callable[[Queue, Filter], int]",
    done: str,
    missing: str,
    dry_run: bool,
    as_json: bool,
) -> int:
    changed, found = 0, set[str]()
    with queue_if_any(settings) as queue:
        _check(settings, queue, wanted)
        if queue is not None:
            if wanted.keys is not None:
                found = {job.key for job in queue.scan(wanted)}
            changed = change(queue, wanted)
    lacking = [key for key in wanted.keys or () if key not in found]
    for key in lacking:
        note(f"{brief(key)}: {missing}")
    if as_json:
        emit({done: changed, **({"dry_run": True} if dry_run else {})})
    else:
        click.echo(f"{changed:,} {'would be ' if dry_run else ''}{done}")
    return 1 if lacking else 0


def _check(settings: "Settings", queue: "Queue | None", wanted: "Filter") -> None:
    """Refuse a pipeline that neither the settings nor the database know."""
    if wanted.queue is not None and (queue is None or wanted.queue not in queue.queues()):
        settings.pipeline(wanted.queue)
