"""The options by which commands choose jobs, and the filter that they make."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pinq.queue.model import Filter

F = TypeVar("F", bound=Callable[..., Any])

_STATES = ("pending", "leased", "succeeded", "dead")

_OPTIONS = (
    click.argument("signatures", nargs=-1, metavar="[SIGNATURE...]"),
    click.option("--pipeline", metavar="P", help="Only this pipeline. [default: all]"),
    click.option(
        "--state", "states", type=click.Choice(_STATES), multiple=True, help="Only in this state."
    ),
    click.option(
        "--priority",
        "priorities",
        type=click.IntRange(1, 9),
        multiple=True,
        metavar="N",
        help="Only of this priority, 1 to 9.",
    ),
    click.option("--error", metavar="CLASS", help="Only where this was the last failure."),
    click.option("--uri", metavar="PATTERN", help="Only images from here; * stands for anything."),
    click.option("--body", metavar="PATTERN", help="Only with such a body; * stands for anything."),
    click.option(
        "--scheduled/--due",
        default=None,
        help="Only those pending that are not due yet; or without them.",
    ),
)


def selecting(command: F) -> F:
    """Give a command the options, all passed to ``chosen`` as they are."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen(
    *,
    signatures: tuple[str, ...],
    pipeline: str | None,
    states: tuple[str, ...],
    priorities: tuple[int, ...],
    error: str | None,
    uri: str | None,
    body: str | None,
    scheduled: bool | None,
) -> "Filter":
    """What the options mean.

    Raises:
        click.BadParameter: there is no such class of failure.
    """
    from pinq.errors import FailureClass
    from pinq.queue.model import Filter, State

    classes = [each.value for each in FailureClass]
    if error is not None and error not in classes:
        raise click.BadParameter(f"{error!a} is none of {', '.join(classes)}", param_hint="--error")
    return Filter(
        queue=pipeline,
        keys=list(dict.fromkeys(signatures)) or None,
        states=[State(state) for state in states] or None,
        priorities=priorities or None,
        error_class=error,
        uri=uri,
        body=None if body is None else body.encode(),
        scheduled=scheduled,
    )
