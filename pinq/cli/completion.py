"""``pinq completion``: the script that completes commands in a shell."""

import click

from pinq.cli.command import Command


@click.command(
    cls=Command,
    short_help="Print the script that completes commands in a shell.",
    examples=(
        ("bash, in ~/.bashrc", 'eval "$(pinq completion bash)"'),
        ("zsh, in ~/.zshrc", 'eval "$(pinq completion zsh)"'),
        ("fish", "pinq completion fish > ~/.config/fish/completions/pinq.fish"),
    ),
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(shell: str) -> None:
    """Print the script that completes pinq's commands and options in SHELL."""
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    from pinq.cli.main import cli

    kind = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}[shell]
    click.echo(kind(cli, {}, "pinq", "_PINQ_COMPLETE").source())
