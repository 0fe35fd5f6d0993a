"""``pinq``: the global options, the commands by name, and what an error becomes.

A command's module is imported when it is called, so that ``pinq --help`` loads
neither SQLAlchemy nor rich, and ``pinq enqueue`` no torch.
"""

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from pinq._version import __version__
from pinq.cli.command import Globals, start_logging
from pinq.errors import ConfigError, InvalidInput, PinqError

COMMANDS = {
    "run": "Compute the signals of images: enqueue, work and announce until done.",
    "enqueue": "Add images to a queue, for a worker to compute.",
    "worker": "Work on the queues until stopped.",
    "relay": "Publish events to the sinks until stopped.",
    "get": "Show the stored signals of an image.",
    "jobs": "List, show, requeue, cancel and delete jobs.",
    "queues": "Show, pause, limit and delete queues.",
    "periodic": "Show what is enqueued by the clock.",
    "migrate": "Move a queue to another database.",
    "db": "Create and upgrade the queue's database.",
    "completion": "Print the script that completes commands in a shell.",
}
"""The commands and their short help, each in the module of its name."""

SOME_DEAD, WRONG_USAGE, FAILED, INTERRUPTED, PIPE_CLOSED = 1, 2, 3, 130, 141


class _PipeClosed(Exception):
    """Whoever read stdout has gone."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"pinq.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _PipeClosed from None  # click would make it exit code 1


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    metavar="DIR",
    help="Keep queue, signals and events in this folder. [default: $PINQ_HOME or .pinq]",
)
@click.option(
    "--config",
    metavar="FILE",
    help="Read the settings from this file. [default: $PINQ_CONFIG, or pinq.toml if there is one]",
)
@click.option("-v", "--verbose", count=True, help="Log what happens to stderr; -vv logs more.")
@click.version_option(__version__, prog_name="pinq", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, home: str | None, config: str | None, verbose: int) -> None:
    """Compute visual signals of images, durably, and look them up.

    The two commands to begin with:

    \b
      pinq run photos/       compute the signals of every image in a folder
      pinq get SIGNATURE     look one of them up

    Exit codes: 0 all went well; 1 something is dead, bad or unknown; 2 wrong
    usage or settings; 3 it could not be done (disk full, store owned by
    another process, …); 130 interrupted.
    """
    for option, value in (("--home", home), ("--config", config)):
        if value == "":
            raise click.UsageError(f"{option} is empty")
    ctx.obj = Globals(home, config, verbose)
    if verbose:
        start_logging(verbose)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding does not have is shown escaped.
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words)
    except KeyboardInterrupt:
        code = INTERRUPTED
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        code = PIPE_CLOSED
    except OSError as error:
        code = _fail(f"stdout: {error.strerror}", FAILED)
    else:
        _leave(code)
    # The interpreter flushes stdout once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exit; where torch was loaded, without freeing half a million objects one by one.

    That took 0.4 s (`docs/benchmarks.md`).
    """
    others = [thread for thread in threading.enumerate() if not thread.daemon]
    if "torch" not in sys.modules or len(others) > 1:  # those are waited for
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none, gone, closed
            stream.flush()
    os._exit(code)


def _run(words: list[str]) -> int:
    try:
        result = cli.main(words, prog_name="pinq", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (_PipeClosed, BrokenPipeError):
        return PIPE_CLOSED
    except (ConfigError, InvalidInput) as error:
        return _fail(str(error), WRONG_USAGE)
    except PinqError as error:
        return _fail(str(error), FAILED, error, words)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "PIL", "numpy"):
            return _unexpected(error, words)
        return _fail(
            f"{error.name} is not installed, and this command computes signals: "
            "pip install 'pinq[worker]'",
            FAILED,
        )
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        return _fail(f"{named}{error.strerror or error}", FAILED, error, words)
    except Exception as error:  # noqa: BLE001 - the last resort
        return _unexpected(error, words)


def _fail(
    message: str, code: int, error: BaseException | None = None, words: Sequence[str] = ()
) -> int:
    click.echo(f"Error: {message}", err=True)
    if error is not None and _is_verbose(words):
        import traceback

        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    return code


def _unexpected(error: Exception, words: Sequence[str]) -> int:
    import tempfile
    import traceback

    told = "".join(traceback.format_exception(error))
    summary = f"Error: unexpected {type(error).__name__}: {error}"
    if _is_verbose(words):
        click.echo(f"{told}{summary}", err=True)
        return FAILED
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="pinq-", suffix=".log", delete=False, errors="backslashreplace"
        ) as log:
            log.write(f"pinq {__version__}, Python {sys.version}\n{told}")
        where = f"the traceback is in {log.name}"
    except OSError:
        where = "run it again with -v for the traceback"
    click.echo(f"{summary}; {where}", err=True)
    return FAILED


def _is_verbose(words: Sequence[str]) -> bool:
    return any(word == "--verbose" or word.startswith("-v") for word in words)
