"""How things are shown: JSON lines, tables, times, names from anywhere."""

import json
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pinq.queue.model import Job

_MOST_BYTES_SHOWN = 400


def emit(record: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout, in ASCII whatever it holds."""
    sys.stdout.write(json.dumps(record) + "\n")


def note(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    click.echo(text, err=True)


def printable(text: str) -> str:
    """``text`` on one line that a terminal can show: no control characters, no broken bytes."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def location(uri: str) -> str:
    """A URI as a person would say it: a ``file:`` one as its path."""
    if uri.startswith("file:"):
        from pinq.errors import MediaError
        from pinq.media.fetch import uri_to_path

        try:
            return printable(str(uri_to_path(uri)))
        except MediaError:
            pass
    return printable(uri)


def brief(text: str) -> str:
    """``text`` on one line of bearable length."""
    text = printable(text)
    return text if len(text) <= _MOST_BYTES_SHOWN else text[: _MOST_BYTES_SHOWN - 1] + "…"


def when(at_ms: int) -> str:
    """A time as RFC 3339 in UTC."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# From so many on, attempts are no limit: what is tried again is somebody else's to decide.
_NO_LIMIT = 1_000_000


def tries(job: "Job", between: str) -> str:
    """How many attempts a job had, and how many it may have."""
    if job.max_attempts >= _NO_LIMIT:
        return str(job.attempts)
    return f"{job.attempts}{between}{job.max_attempts}"


def job_record(job: "Job") -> dict[str, Any]:
    """A job as JSON."""
    return {
        "signature": job.key,
        "pipeline": job.queue,
        "state": str(job.state),
        "attempts": job.attempts,
        "uri": job.uri,
        **({"status": job.status} if job.status else {}),
        **_as_text("body", job.body),
        **_as_text("progress", job.progress),
        "errors": [error_record(error) for error in job.errors],
    }


def _as_text(name: str, content: bytes) -> dict[str, str]:
    """Bytes in JSON: as text if they are, else in base64 under a name that says so."""
    if not content:
        return {}
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(content).decode()}


def error_record(error: Any) -> dict[str, Any]:
    """A failed attempt as JSON."""
    return {
        "class": str(error.failure_class),
        "message": error.message,
        "at": when(error.at_ms),
    }


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; whole on a pipe, folded to fit a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = column in _NUMERIC
        shown.add_column(
            column,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=numeric or column in ("state", "pipeline"),
        )
    for row in rows:
        # Text, not str: a file name is not to be read as markup.
        shown.add_row(*(Text(printable(str(cell))) for cell in row))
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 100_000
        console.width = max(console.measure(shown).maximum, 1)
    console.print(shown)


_NUMERIC = {"attempts", "pending", "scheduled", "leased", "succeeded", "dead"}
