"""``pinq enqueue``: images into a queue, for a worker to compute."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from pinq.cli.command import Command, json_option, pass_settings
from pinq.cli.output import brief, emit, location, note

if TYPE_CHECKING:
    from pinq.config import Settings
    from pinq.ingest.items import BadItem, Item

_BATCH = 1000
_LINES_SHOWN = 10
# Lines that come slower than this are enqueued one by one.
_IDLE_SECONDS = 0.02
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _due(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    """ISO 8601, or +10m from now."""
    if value is None:
        return None
    try:
        if match := re.match(r"\+(\d+(?:\.\d+)?)([smhd])\Z", value):
            return datetime.now(UTC) + timedelta(**{_UNITS[match[2]]: float(match[1])})
        at = datetime.fromisoformat(value)
        at.timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{value!r} is no time; for example 2026-01-31T08:00:00Z, "
            "2026-01-31T08:00 (local), +10m or +2h"
        ) from None
    return at


@click.command(
    cls=Command,
    short_help="Add images to a queue, for a worker to compute.",
    examples=(
        ("A folder, ahead of the rest", "pinq enqueue --priority 1 photos/"),
        ("A list of paths or URIs, one a line", "pinq enqueue --from list.txt"),
        ("CSV or JSON lines with uri and signature", "pinq enqueue --from images.csv --json"),
        (
            "As files come in",
            "inotifywait -mrq -e close_write --format %w%f in/ | pinq enqueue --from -",
        ),
        ("In two hours", "pinq enqueue --run-at +2h cat.jpg"),
    ),
)
@click.argument("paths", nargs=-1, metavar="[PATH...]")
@click.option(
    "--from",
    "source",
    type=click.File("rb"),
    metavar="FILE|-",
    help="Read a list from a file or stdin: lines of paths or URIs, JSON lines, or CSV with a "
    "header; the latter two with uri and, if you like, signature.",
)
@click.option(
    "--pipeline", metavar="P", default="default", help="The pipeline to feed. [default: default]"
)
@click.option(
    "--priority",
    type=click.IntRange(1, 9),
    metavar="N",
    help="1 (first) to 9. [default: the pipeline's]",
)
@click.option(
    "--run-at",
    callback=_due,
    metavar="T",
    help="Not before this time: ISO 8601, or a delay such as +10m or +2h.",
)
@click.option("--force", is_flag=True, help="Run again what has succeeded or is dead.")
@json_option
@pass_settings
def command(
    settings: "Settings",
    paths: tuple[str, ...],
    source: BinaryIO | None,
    pipeline: str,
    priority: int | None,
    run_at: datetime | None,
    force: bool,
    as_json: bool,
) -> int:
    """Add images to a queue.

    PATH is a file, a folder (read to its depths) or a pattern. An image that is
    in the queue already, or was computed, is a duplicate and stays as it is.
    An image without a signature is known by the digest of its bytes.
    """
    import sys
    from collections import Counter

    from pinq.client import Client

    if not paths and source is None:
        raise click.UsageError("name a PATH, or a list with --from")
    counts: Counter[str] = Counter()
    shown = 0
    with Client(settings) as client:
        for batch in _batches(settings, paths, source):
            for result in client.enqueue_many(
                batch, pipeline=pipeline, priority=priority, run_at=run_at, force=force
            ):
                if result.outcome is None:
                    counts["bad"] += 1
                    note(f"Bad: {brief(result.error or '')}")
                    continue
                counts[result.outcome] += 1
                if as_json:
                    emit(
                        {
                            "signature": result.signature,
                            "uri": result.uri,
                            "outcome": str(result.outcome),
                        }
                    )
                elif shown < _LINES_SHOWN:
                    click.echo(f"{result.signature} {result.outcome} {location(result.uri)}")
                    shown += 1
            sys.stdout.flush()
    good = counts.total() - counts["bad"]
    if good > shown and not as_json:
        click.echo(f"… and {good - shown:,} more")
    words = [f"{counts['enqueued']:,} enqueued", f"{counts['duplicate']:,} duplicate"]
    words += [f"{counts[word]:,} {word}" for word in ("rerun", "bad") if counts[word]]
    click.echo(", ".join(words), err=as_json)
    if not good and source is None:
        return 2
    return 1 if counts["bad"] else 0


def _batches(
    settings: "Settings", paths: tuple[str, ...], source: BinaryIO | None
) -> Iterator[list[Any]]:
    from pinq.ingest.lists import LineReader, read_list
    from pinq.ingest.paths import discover

    if paths:
        found = iter(discover(paths, formats=settings.media.formats))
        while batch := list(islice(found, _BATCH)):
            yield batch
    if source is not None:
        lines = LineReader(source.fileno())
        name = "stdin" if source.name in ("-", "<stdin>") else location(str(source.name))
        yield from _as_they_come(read_list(lines, name), lines)


def _as_they_come(items: "Iterable[Item | BadItem]", lines: Any) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) >= _BATCH or lines.idle(_IDLE_SECONDS):
            yield batch
            batch = []
    if batch:
        yield batch
