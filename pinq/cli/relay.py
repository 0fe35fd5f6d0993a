"""``pinq relay``: events from the outbox to the sinks."""

import click

from pinq.cli.command import Command, Globals, pass_globals, start_logging
from pinq.cli.output import note


@click.command(
    cls=Command,
    short_help="Publish events to the sinks until stopped.",
    examples=(
        ("Until Ctrl-C or SIGTERM", "pinq relay"),
        ("What there is, then end", "pinq relay --until-empty"),
    ),
)
@click.option("--until-empty", is_flag=True, help="End when every event has been published.")
@pass_globals
def command(options: Globals, until_empty: bool) -> None:
    """Publish the events of finished jobs to the sinks of the settings.

    An event is marked after the sinks have accepted it: after a crash it may be
    published again, with the same id.
    """
    from pinq.cli.stopping import stopping

    settings = options.settings()
    if not options.verbose:
        start_logging(0)
    with stopping() as stop:
        from pinq.runtime import run_relay

        published = run_relay(settings, until_empty=until_empty, stop=stop)
    note(f"events published: {published:,}")
