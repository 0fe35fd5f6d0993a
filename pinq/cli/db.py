"""``pinq db``: the queue's database."""

from typing import TYPE_CHECKING

import click

from pinq.cli.command import Command, Group, json_option, pass_settings
from pinq.cli.output import emit

if TYPE_CHECKING:
    from pinq.config import Settings


@click.group(cls=Group, short_help="Create and upgrade the queue's database.")
def command() -> None:
    """Create and upgrade the queue's database. The embedded one does so by itself."""


@command.command(
    "upgrade",
    cls=Command,
    examples=(("Before a new version's workers start", "pinq db upgrade"),),
)
@json_option
@pass_settings
def upgrade(settings: "Settings", as_json: bool) -> None:
    """Create the database, or bring it to this version's schema."""
    from pinq.queue.urls import upgrade as to_head

    revision = to_head(settings.queue)
    if as_json:
        emit({"revision": revision, "head": revision})
    else:
        click.echo(f"at revision {revision}")


@command.command(
    "current",
    cls=Command,
    examples=(("Is an upgrade due?", "pinq db current"),),
)
@json_option
@pass_settings
def current(settings: "Settings", as_json: bool) -> None:
    """Show the database's schema revision, and this version's."""
    from pinq.queue.urls import current as revisions

    revision, head = revisions(settings.queue)
    if as_json:
        emit({"revision": revision, "head": head})
    elif revision is None:
        click.echo(f"no database yet; this version makes revision {head}")
    elif revision == head:
        click.echo(f"at revision {revision}, up to date")
    else:
        click.echo(f"at revision {revision}; this version's is {head}")
