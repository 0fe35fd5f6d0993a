"""``pinq worker``: a worker process."""

import click

from pinq.cli.command import Command, Globals, pass_globals, start_logging


@click.command(
    cls=Command,
    short_help="Work on the queues until stopped.",
    examples=(
        ("Until Ctrl-C or SIGTERM", "pinq -v worker"),
        ("Until all is done, for a batch job", "pinq worker --until-empty"),
        ("One pipeline only", "pinq worker --pipeline pins"),
    ),
)
@click.option(
    "--until-empty",
    is_flag=True,
    help="End when nothing is pending or leased any more; retries due later are waited for.",
)
@click.option(
    "--pipeline",
    "pipelines",
    multiple=True,
    metavar="P",
    help="Work on this pipeline only; may be given several times. [default: all]",
)
@pass_globals
def command(options: Globals, until_empty: bool, pipelines: tuple[str, ...]) -> None:
    """Work on the queues until stopped: fetch, decode, compute, store.

    SIGTERM or SIGINT ends it politely: what is in hand is finished or given
    back, and nothing is lost. Events are published by `pinq relay`.
    """
    from pinq.cli.stopping import stopping

    settings = options.settings()
    for name in pipelines:
        settings.pipeline(name)
    if not options.verbose:
        start_logging(0)
    with stopping() as stop:
        from pinq.runtime import run_worker

        run_worker(
            settings,
            until_empty=until_empty,
            stop=stop,
            pipelines=list(dict.fromkeys(pipelines)) or None,
        )
