"""``pinq migrate``: a queue from one database to another."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import click

from pinq.cli.command import Command, Globals, json_option, pass_globals, start_logging
from pinq.cli.output import emit, note

if TYPE_CHECKING:
    from pinq.queue.moving import Moved, MoveProgress
    from pinq.queue.transfer import Transferable


@click.command(
    cls=Command,
    short_help="Move a queue to another database.",
    examples=(
        (
            "From the embedded queue to a server",
            "pinq migrate sqlite:///.pinq/queue.db postgresql://db.example/pinq",
        ),
        (
            "Give it up, while it is under way",
            "pinq migrate sqlite:///.pinq/queue.db postgresql://db.example/pinq --undo",
        ),
    ),
)
@click.argument("origin", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--force", is_flag=True, help="Move jobs that workers hold, too: they are redone.")
@click.option("--undo", is_flag=True, help="Give up a move that has not ended; FROM goes on.")
@click.option(
    "--batch",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Copy N jobs at once; fewer, where their bodies are large. [default: 1000]",
)
@json_option
@pass_globals
def command(
    options: Globals,
    origin: str,
    target: str,
    force: bool,
    undo: bool,
    batch: int | None,
    as_json: bool,
) -> int:
    """Move all queues of a database, with their jobs, leases, history and events.

    FROM and TO are URLs, as `queue` in the settings. Stop the workers and relays of FROM
    first; a server's TO needs `pinq db upgrade`. When it is interrupted, run it again: it
    goes on where it was. In the end FROM stays as it is, paused and draining, and TO is
    open: set `queue` to it and start the workers.
    """
    from pinq.queue import moving
    from pinq.queue.transfers import open_transfer

    if not options.verbose:
        start_logging(0)
    with ExitStack() as opened:
        source = open_transfer(origin, create=False)
        opened.enter_context(closing(source.queue))
        if undo:
            _undo(source, target, opened)
            if as_json:
                emit({"from": source.address, "undone": True})
            else:
                click.echo(f"Given up: {source.address} goes on as before")
            return 0
        sink = open_transfer(target)
        opened.enter_context(closing(sink.queue))

        from pinq.cli.stopping import stopping

        with stopping() as stop, _progress_bar() as show:
            moved = moving.move(
                source,
                sink,
                force=force,
                batch=batch or moving.BATCH,
                on_progress=show,
                stop=stop,
            )
    if as_json:
        emit(_record(moved))
    else:
        _summarise(moved)
    return 130 if moved.interrupted else 0


def _undo(source: "Transferable", target: str, opened: ExitStack) -> None:
    from pinq.errors import QueueError
    from pinq.queue import moving
    from pinq.queue.transfers import open_transfer

    try:
        sink = open_transfer(target, create=False)
        opened.enter_context(closing(sink.queue))
    except QueueError as error:
        moving.undo(source, None)
        note(f"TO could not be opened; what it has of the move stays there. {error}")
    else:
        moving.undo(source, sink)


def _record(moved: "Moved") -> dict[str, object]:
    return {
        "from": moved.origin,
        "to": moved.target,
        "queues": moved.queues,
        "jobs": moved.jobs,
        "leases": moved.leases,
        "events": moved.events,
        "resumed": moved.resumed,
        "interrupted": moved.interrupted,
        "seconds": round(moved.seconds, 3),
        "jobs_per_second": round(_speed(moved), 1),
    }


def _summarise(moved: "Moved") -> None:
    if moved.interrupted:
        click.echo(f"Interrupted after {moved.copied:,} jobs; run it again to go on.")
        return
    click.echo(
        f"{moved.queues:,} queues, {moved.jobs:,} jobs, {moved.leases:,} leases and "
        f"{moved.events:,} unpublished events moved in {moved.seconds:.1f} s, "
        f"{_speed(moved):,.0f} jobs/s"
    )
    click.echo(f"From     {moved.origin}: paused and draining; keep it, or delete it")
    click.echo(f'To       {moved.target}: set it as "queue" in pinq.toml, then start the workers')


def _speed(moved: "Moved") -> float:
    return moved.copied / moved.seconds if moved.seconds else 0.0


@contextmanager
def _progress_bar() -> "Iterator[Callable[[MoveProgress], None] | None]":
    """A bar on stderr, where that is a terminal."""
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    bar = Progress(
        SpinnerColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=None, counts="starting")

    def show(progress: "MoveProgress") -> None:
        bar.update(
            task,
            completed=progress.moved,
            total=max(progress.jobs, 1),
            counts=f"{progress.moved:,}/{progress.jobs:,} jobs",
        )

    with bar:
        yield show
