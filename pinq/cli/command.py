"""What the commands share: examples in their help, the global options, settings."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from pinq.config import Settings
    from pinq.queue.contract import Queue

P = ParamSpec("P")
T = TypeVar("T")


class Command(click.Command):
    """A command whose help ends with ``examples``, (what it does, the line to type)."""

    def __init__(
        self, *args: Any, examples: tuple[tuple[str, str], ...] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for index, (what, line) in enumerate(self.examples):
                    if index:
                        formatter.write_paragraph()
                    formatter.write_text(f"{what}:")
                    formatter.indent()
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
                    formatter.dedent()


class Group(click.Group):
    """A noun with verbs."""

    command_class = Command


@dataclass(frozen=True, slots=True)
class Globals:
    """The options that stand before the command."""

    home: str | None = None
    config: str | None = None
    verbose: int = 0

    def settings(self) -> "Settings":
        from pinq.config import load

        return load(self.config, self.home)

    def line(self, *words: str) -> str:
        """A command line for these settings, to show to a person."""
        options = []
        if self.home:
            options += ["--home", self.home]
        if self.config:
            options += ["--config", self.config]
        return shlex.join(["pinq", *options, *words])


def pass_globals(command: Callable[Concatenate[Globals, P], T]) -> Callable[P, T]:
    """Give the command the global options first."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        found = click.get_current_context().find_object(Globals)
        return command(found or Globals(), *args, **kwargs)

    return update_wrapper(call, command)


def pass_settings(command: "Callable[Concatenate[Settings, P], T]") -> Callable[P, T]:
    """Give the command the settings first."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        found = click.get_current_context().find_object(Globals)
        return command((found or Globals()).settings(), *args, **kwargs)

    return update_wrapper(call, command)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Write JSON to stdout, and nothing else."
)


@contextmanager
def queue_if_any(settings: "Settings") -> "Iterator[Queue | None]":
    """The queue, unless none has been made: to look must not make one."""
    from pinq.queue.urls import open_queue, queue_exists

    if not queue_exists(settings.queue):
        yield None
        return
    with closing(open_queue(settings.queue)) as queue:
        yield queue


def start_logging(verbose: int) -> None:
    """Logs go to stderr: warnings, with ``-v`` what happens, with ``-vv`` all of it."""
    import logging
    import sys

    class ToStderr(logging.StreamHandler[Any]):
        # Looked up each time: a progress bar stands in for stderr while it is shown.
        @property
        def stream(self) -> Any:
            return sys.stderr

        @stream.setter
        def stream(self, _: Any) -> None:
            pass

    handler = ToStderr()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    )
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
