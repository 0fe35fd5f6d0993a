"""The command line's reference, from the commands themselves.

``python -m pinq.cli.reference > docs/reference/cli.md`` writes it anew; a test
says when that is due.
"""

import inspect
import sys
from collections.abc import Iterator

import click

from pinq.cli.command import Command
from pinq.cli.main import cli

_HEAD = """# Command line

Made from the code by `python -m pinq.cli.reference`; change it there.

Options of `pinq` itself stand before the command, as in `pinq --home DIR run photos/`.
"""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups before their verbs."""
    yield from _below("pinq", cli)


def markdown() -> str:
    """The whole page."""
    return _HEAD + "".join(_section(name, command) for name, command in commands())


def _below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for verb in command.list_commands(context):
            found = command.get_command(context, verb)
            if found is not None:
                yield from _below(f"{name} {verb}", found)


def _section(name: str, command: click.Command) -> str:
    usage = " ".join([name, *command.collect_usage_pieces(click.Context(command))])
    lines = [f"\n## `{name}`\n", f"```\n{usage}\n```\n"]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            lines.append(f"```\n{inspect.cleandoc(paragraph[2:])}\n```\n")
        else:
            lines.append(f"{paragraph}\n")
    options = [each for each in command.params if isinstance(each, click.Option)]
    if options:
        lines.append("| option | |\n| --- | --- |")
        lines += [f"| {_option(each)} | {each.help} |" for each in options]
        lines.append("")
    if isinstance(command, Command) and command.examples:
        told = "\n".join(f"# {what}\n{line}" for what, line in command.examples)
        lines.append(f"```sh\n{told}\n```\n")
    return "\n".join(lines)


def _option(option: click.Option) -> str:
    value = "" if option.is_flag or option.count else option.make_metavar(_NOWHERE)
    shown = ", ".join(f"`{flag}`" for flag in option.opts)
    if not value:
        return shown
    return f"{shown[:-1]} {value}`".replace("|", "\\|")


_NOWHERE = click.Context(click.Command("pinq"))

if __name__ == "__main__":
    sys.stdout.write(markdown())
