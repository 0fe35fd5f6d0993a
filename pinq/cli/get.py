"""``pinq get``: the stored signals of an image."""

from typing import TYPE_CHECKING, Any

import click

from pinq.cli.command import Command, json_option, pass_settings
from pinq.cli.output import brief, emit, error_record, printable, when

if TYPE_CHECKING:
    from pinq.client import Standing
    from pinq.config import Settings


@click.command(
    cls=Command,
    short_help="Show the stored signals of an image.",
    examples=(
        ("All of them", "pinq get 3f786850e387550fdab836ed7e6dc881"),
        ("One, from another galaxy", "pinq get pin-417 --galaxy pins --signal pdq"),
        ("For a script", "pinq get pin-417 --json | jq -r .signals.pdq.value.hash"),
    ),
)
@click.argument("signature")
@click.option("--galaxy", metavar="G", default="default", help="Where to look. [default: default]")
@click.option(
    "--signal",
    "signals",
    multiple=True,
    metavar="S",
    help="Only this one; may be given several times. [default: all]",
)
@json_option
@pass_settings
def command(
    settings: "Settings", signature: str, galaxy: str, signals: tuple[str, ...], as_json: bool
) -> int:
    """Show the stored signals of an image, and whether more are to come.

    The state is present, pending (a job is on its way), failed (its job is dead;
    the errors are shown) or unknown (exit code 1). Reads beside a running worker.
    """
    from pinq.client import Client
    from pinq.config import NAME

    for name, what in ((galaxy, "galaxy"), *((signal, "signal") for signal in signals)):
        if not NAME.match(name):
            raise click.UsageError(f"{name!r} is no name of a {what}")
    with Client(settings) as client:
        standing = client.state(signature, galaxy=galaxy, signals=signals or None)
    record = _record(settings, standing)
    if as_json:
        emit(record)
    else:
        _show(record, standing)
    return 1 if standing.state == "unknown" else 0


def _record(settings: "Settings", standing: "Standing") -> dict[str, Any]:
    from pinq.signals.registry import render
    from pinq.store.contract import SignalValue

    record: dict[str, Any] = {
        "signature": standing.signature,
        "galaxy": standing.galaxy,
        "state": standing.state,
        "signals": {
            name: {
                "version": signal.version,
                "computed_at": when(signal.computed_at_ms),
                "value": render(
                    settings,
                    name,
                    signal.version,
                    SignalValue(
                        signal.dtype,
                        signal.shape,
                        signal.data,
                        signal.computed_at_ms,
                        signal.meta,
                    ),
                ),
            }
            for name, signal in standing.signals.items()
        },
    }
    if standing.state == "failed":
        record["errors"] = [error_record(error) for job in standing.jobs for error in job.errors]
    return record


def _show(record: dict[str, Any], standing: "Standing") -> None:
    click.echo(f"{record['signature']} in {record['galaxy']}: {record['state']}")
    for name, signal in record["signals"].items():
        click.echo(f"{name}@{signal['version']}  computed {signal['computed_at']}")
        for key, value in signal["value"].items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                click.echo(f"  {key}")
                for row in value:
                    click.echo("    " + "  ".join(f"{k} {v}" for k, v in row.items()))
            else:
                click.echo(f"  {key}  {brief(str(value))}")
    for error in record.get("errors", ()):
        click.echo(f"{error['at']}  {error['class']}: {brief(error['message'])}")
    for job in standing.jobs:
        if str(job.state) in ("pending", "leased"):
            click.echo(f"job in {printable(job.queue)}: {job.state}, {job.attempts} attempts")
