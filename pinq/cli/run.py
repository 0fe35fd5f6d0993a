"""``pinq run``: images in, signals out, in one command."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from pinq.cli.command import Command, Globals, json_option, pass_globals, start_logging
from pinq.cli.output import brief, emit, location, note, printable

if TYPE_CHECKING:
    from pinq.config import Settings
    from pinq.runtime import RunProgress, RunReport

_BAD_SHOWN = 20


class _Shows(Protocol):
    def __call__(self, progress: "RunProgress", /) -> None: ...


@click.command(
    cls=Command,
    short_help="Compute the signals of images: enqueue, work and announce until done.",
    examples=(
        ("A folder, to its depths", "pinq run photos/"),
        ("Files and patterns", "pinq run cat.jpg 'photos/**/*.png'"),
        ("What has failed before, once more", "pinq run --retry-dead photos/"),
        ("The figures, for a script", "pinq --home /var/lib/pinq run photos/ --json"),
    ),
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--pipeline", metavar="P", default="default", help="The pipeline to feed. [default: default]"
)
@click.option("--retry-dead", is_flag=True, help="Give images that are dead all their attempts.")
@json_option
@pass_globals
def command(
    options: Globals, paths: tuple[str, ...], pipeline: str, retry_dead: bool, as_json: bool
) -> int:
    """Compute the signals of images, store them and announce them, until all is done.

    PATH is a file, a folder (read to its depths) or a pattern. What was computed
    before is not computed again; what is dead stays so unless --retry-dead. When
    it is interrupted, run it again: it goes on where it was.
    """
    from pinq.cli.stopping import stopping
    from pinq.ingest.items import BadItem
    from pinq.ingest.paths import discover

    settings = options.settings()
    settings.pipeline(pipeline)
    # Before anything is made or loaded: is there anything at all?
    bad = []
    for found in discover(paths, formats=settings.media.formats):
        if not isinstance(found, BadItem):
            break
        bad.append(found)
    else:
        for item in bad:
            note(f"{brief(str(item))}")
        raise click.UsageError("nothing to run: no image was found under PATH")

    if not options.verbose:
        start_logging(0)
    with stopping() as stop, _progress_bar() as show:
        from pinq.runtime import run

        report = run(
            settings,
            paths,
            pipeline=pipeline,
            retry_dead=retry_dead,
            on_progress=show,
            stop=stop,
        )
    if as_json:
        emit(
            {
                "enqueued": report.enqueued,
                "duplicate": report.duplicate,
                "succeeded": report.succeeded,
                "dead": report.dead,
                "dead_by_class": dict(report.dead_by_class),
                "seconds": round(report.seconds, 3),
                "images_per_second": round(report.images_per_second, 3),
            }
        )
    _summarise(report, settings, options, pipeline, paths, err=as_json)
    if report.interrupted:
        return 130
    return 1 if report.dead or report.skipped else 0


def _summarise(
    report: "RunReport",
    settings: "Settings",
    options: Globals,
    pipeline: str,
    paths: tuple[str, ...],
    *,
    err: bool,
) -> None:
    def say(line: str = "") -> None:
        click.echo(line, err=err)

    for item in report.skipped[:_BAD_SHOWN]:
        note(f"Skipped: {brief(str(item))}")
    if len(report.skipped) > _BAD_SHOWN:
        note(f"Skipped: {len(report.skipped) - _BAD_SHOWN:,} more")
    say(
        f"{report.succeeded:,} succeeded, {report.dead:,} dead "
        f"({report.enqueued:,} enqueued, {report.duplicate:,} known before) "
        f"in {report.seconds:.1f} s, {report.images_per_second:.1f} images/s"
    )
    for reason, count in sorted(report.dead_by_class.items(), key=lambda each: -each[1]):
        say(f"  dead: {reason} {count:,}")
        for job in report.dead_examples.get(reason, ()):
            message = job.errors[-1].message if job.errors else ""
            say(f"    {location(job.uri)}: {brief(message)}")
    say(f"Home     {printable(str(settings.home))}")
    for url in settings.events:
        say(f"Events   {printable(url.removeprefix('file:///'))}")
    if report.interrupted:
        say("Interrupted; run it again to go on.")
    elif report.dead:
        say(f"Retry    {options.line('run', '--retry-dead', *paths)}")
    if (signature := _one_succeeded(settings, pipeline)) is not None:
        say(f"Look up  {options.line('get', signature)}")


def _one_succeeded(settings: "Settings", pipeline: str) -> str | None:
    """A signature to show how one is looked up."""
    from contextlib import closing

    from pinq.queue.model import Filter, State
    from pinq.queue.urls import open_queue

    with closing(open_queue(settings.queue)) as queue:
        for job in queue.page(Filter(pipeline, states=(State.SUCCEEDED,)), limit=1).jobs:
            return job.key
    return None


@contextmanager
def _progress_bar() -> Iterator[_Shows | None]:
    """A bar on stderr, where that is a terminal."""
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    import time
    from collections import deque

    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    bar = Progress(
        SpinnerColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[counts]}"),
        TextColumn("[green]{task.fields[rate]}"),
        TextColumn("{task.fields[eta]}"),
        TextColumn("[red]{task.fields[failed]}"),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=None, counts="starting", rate="", eta="", failed="")
    recent: deque[tuple[float, int]] = deque(maxlen=100)

    def show(progress: "RunProgress") -> None:
        # The rate of the last ten seconds or so: what was known before does not count.
        recent.append((time.monotonic(), progress.computed + progress.dead))
        seconds = recent[-1][0] - recent[0][0]
        rate = (recent[-1][1] - recent[0][1]) / seconds if seconds else 0.0
        left = progress.found - progress.done
        eta = ""
        if rate and left > 0 and not progress.scanning:
            minutes, rest = divmod(round(left / rate), 60)
            hours, minutes = divmod(minutes, 60)
            eta = f"{hours}:{minutes:02}:{rest:02} left"
        more = "+" if progress.scanning else ""
        bar.update(
            task,
            completed=progress.done,
            total=max(progress.found, 1),
            counts=f"{progress.done:,}/{progress.found:,}{more}",
            rate=f"{rate:.1f} images/s",
            eta=eta,
            failed=f"{progress.dead:,} failed" if progress.dead else "",
        )

    with bar:
        yield show
