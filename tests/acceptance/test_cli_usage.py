"""Help, the reference, exit codes, and what an error looks like."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pinq.cli.command import Command
from pinq.cli.main import COMMANDS, cli
from pinq.cli.reference import commands, markdown
from tests.acceptance.conftest import Pinq

ROOT = Path(__file__).parents[2]


def test_the_reference_is_what_the_code_says() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text("utf-8")
    assert page == markdown(), "python -m pinq.cli.reference > docs/reference/cli.md"


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_and_option_has_help_and_every_verb_an_example(
    name: str, command: click.Command
) -> None:
    assert command.help
    for each in command.params:
        if isinstance(each, click.Option):
            assert each.help, each.name
    if not isinstance(command, click.Group):
        assert isinstance(command, Command)
        assert any(name in line for _, line in command.examples) or name == "pinq worker"


def test_the_short_help_is_each_commands_own() -> None:
    context = click.Context(cli)
    for name, short_help in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert command.short_help == short_help


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], {"sqlalchemy", "rich", "torch", "dramatiq", "logging", "pinq.config"}),
        (["run", "--help"], {"sqlalchemy", "rich", "torch", "dramatiq"}),
        (["enqueue", "x.jpg"], {"rich", "torch", "dramatiq", "numpy", "PIL", "rocksdict"}),
        (["jobs", "ls"], {"torch", "dramatiq", "numpy", "PIL", "rocksdict"}),
        (["get", "s"], {"torch", "dramatiq", "numpy", "PIL", "rich"}),
    ],
)
def test_a_command_imports_no_more_than_it_needs(
    tmp_path: Path, environment: dict[str, str], words: list[str], absent: set[str]
) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    program = (
        "import sys, pinq.cli.main as m\n"
        f"try: m.main({words!r})\n"
        f"except SystemExit: print({absent!r} & {{*sys.modules}})"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
    )
    assert told.stdout.splitlines()[-1] == b"set()"


def test_the_version_is_told_by_both_names(pinq: Pinq, tmp_path: Path) -> None:
    from pinq import __version__

    assert pinq("--version").out == f"pinq {__version__}\n"
    by_module = subprocess.run(
        [sys.executable, "-m", "pinq", "--version"], capture_output=True, text=True, check=True
    )
    assert by_module.stdout == f"pinq {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        ["run"],
        ["run", "gone"],
        ["run", "empty"],
        ["run", "*.gif"],
        ["run", "--pipeline", "nope", "x.jpg"],
        ["enqueue"],
        ["enqueue", "gone"],
        ["enqueue", "--from", "gone"],
        ["enqueue", "--priority", "10", "x.jpg"],
        ["enqueue", "--run-at", "soon", "x.jpg"],
        ["enqueue", "--pipeline", "nope", "x.jpg"],
        ["get"],
        ["get", "a/b"],
        ["get", "s", "--galaxy", "a/b"],
        ["jobs", "ls", "--state", "nope"],
        ["jobs", "ls", "--pipeline", "nope"],
        ["jobs", "requeue"],
        ["jobs", "requeue", "s", "--all-dead"],
        ["worker", "--pipeline", "nope"],
        ["completion", "tcsh"],
        ["--config", "gone.toml", "queues", "ls"],
        ["--home", "x.jpg", "queues", "ls"],
        ["--home", "", "queues", "ls"],
    ],
)
def test_wrong_usage_is_told_in_a_word_with_code_2_and_makes_nothing(
    pinq: Pinq, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    ended = pinq(*words)
    assert ended.code == 2
    assert ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / ".pinq").exists()


def test_a_bad_settings_file_is_told_with_file_and_key(pinq: Pinq, tmp_path: Path) -> None:
    (tmp_path / "pinq.toml").write_text("[worker]\nbatchsize = 3\n")
    ended = pinq("jobs", "ls")
    assert ended.code == 2
    assert ended.err.startswith(f"Error: {tmp_path}/pinq.toml: unknown key worker.batchsize")
    assert pinq("--help").code == 0


@pytest.mark.parametrize("words", [["queues", "ls"], ["jobs", "ls"], ["db", "current"]])
def test_to_look_makes_nothing(pinq: Pinq, tmp_path: Path, words: list[str]) -> None:
    assert pinq(*words).code == 0
    assert pinq(*words, "--json").code == 0
    assert pinq("get", "s").code == 1
    assert pinq("jobs", "show", "s").code == 1
    assert list(tmp_path.iterdir()) == []


def test_the_database_is_made_and_its_revision_told(pinq: Pinq) -> None:
    (before,) = pinq("db", "current", "--json").records
    assert before["revision"] is None
    assert pinq("db", "upgrade").code == 0
    (after,) = pinq("db", "current", "--json").records
    assert after["revision"] == after["head"] == before["head"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(pinq: Pinq, shell: str) -> None:
    ended = pinq("completion", shell)
    assert ended.code == 0
    assert "_PINQ_COMPLETE" in ended.out


def test_the_shell_is_answered(pinq: Pinq) -> None:
    told = pinq(_PINQ_COMPLETE="bash_complete", COMP_WORDS="pinq jobs re", COMP_CWORD="2").out
    assert told == "plain,requeue\n"


def test_a_reader_that_leaves_is_no_error(
    tmp_path: Path, environment: dict[str, str], program: str, pinq: Pinq
) -> None:
    lines = b"".join(b"/x/%d.jpg,s%d\n" % (i, i) for i in range(5000))
    assert pinq("enqueue", "--from", "-", stdin=b"uri,signature\n" + lines).code == 0
    reading, writing = os.pipe()
    with subprocess.Popen(
        [program, "jobs", "ls", "--json"],
        cwd=tmp_path,
        env=environment,
        stdout=writing,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(writing)
        os.read(reading, 10)
        os.close(reading)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_stdout_is_told(tmp_path: Path, environment: dict[str, str], program: str) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        ended = subprocess.run(
            [program, "queues", "ls", "--json"],
            cwd=tmp_path,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert ended.returncode == 3
    assert b"No space left on device" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_a_damaged_database_is_told_in_a_word(pinq: Pinq, tmp_path: Path) -> None:
    (tmp_path / ".pinq").mkdir()
    (tmp_path / ".pinq/queue.db").write_bytes(b"not a database" * 1000)
    ended = pinq("jobs", "ls")
    assert ended.code == 3
    assert ended.err.startswith("Error: ")
    assert "Traceback" not in ended.err
    assert "Traceback" in pinq("-v", "jobs", "ls").err


def test_what_nobody_expected_leaves_a_traceback_where_it_says(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    program = (
        "import pinq.config, pinq.cli.main as m\n"
        "def load(*_): raise RuntimeError('boom')\n"
        "pinq.config.load = load\n"
        "m.main(['queues', 'ls'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 3
    assert ended.stderr.startswith("Error: unexpected RuntimeError: boom; the traceback is in ")
    (log,) = tmp_path.glob("pinq-*.log")
    assert str(log) in ended.stderr
    assert "boom" in log.read_text()
