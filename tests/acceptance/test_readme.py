"""The README and the client's guide, followed to the letter.

Commands in ``console`` blocks (``$ ``) are run in order, in a folder that looks
like a checkout. Their exit code must be 0, unless the next one asks for it with
``echo $?``, and what is printed must be what the page shows, but for times, ids,
measures and the folder; a line of ``…`` stands for any lines. A block of Python
or TOML whose first line is a comment with a file's name is saved as that file;
another block of Python is run, and the ``text`` block that follows is what it prints.

An HTML comment before a block says otherwise: ``test: skip`` for what must not
run here, ``test: background`` for a command that stays until the page ends; it
is asked to with SIGTERM then, and must exit with 0.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Where the pages' output was captured.
SHOWN_ROOT = "/srv/pinq"

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<mark>\w+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
_FILE = re.compile(r"# ([\w.-]+\.(?:py|toml))\n")
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")

# What differs from run to run or from machine to machine, in this order.
_VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"), "<time>"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<id>"),
    # Decoders differ in a pixel here and there: a hash may too, signatures may not.
    (re.compile(r"\b[0-9a-f]{64}\b|^[0-9a-f]{16}$"), "<hash>"),
    (re.compile(r"\d+\.\d+"), "<measure>"),
    (re.compile(r"\(\d+ bytes"), "(<n> bytes"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    mark: str | None
    line: int


@dataclass
class Checkout:
    """A folder like a checkout, whose ``pinq`` and Python are the running ones."""

    folder: Path
    code: int = 0
    _background: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._program("bin/pinq", f'exec {sys.executable} -m pinq "$@"')
        self._program(".venv/bin/python", f'exec {sys.executable} "$@"')
        shutil.copytree(ROOT / "tests" / "data", self.folder / "tests" / "data")

    def _program(self, name: str, line: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    @property
    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PINQ_", "PYTHON"))}
        # For the pages' `python3`, which any will do for; no pinq of another place.
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
        return kept | {"OMP_NUM_THREADS": "1", "PATH": path}

    def run(self, command: str) -> str:
        """What a command prints, stderr last; ``code`` becomes its exit code."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"(exit {self.code})\n{command}"],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        self.code = done.returncode
        return done.stdout + done.stderr

    def python(self, code: str) -> str:
        """What a program prints, and its traceback."""
        (self.folder / "block.py").write_text(code)
        return self.run(".venv/bin/python block.py")

    def start(self, command: str) -> None:
        """Run a command until ``close``, by when it must not have ended."""
        self._background.append(
            subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def close(self) -> None:
        """Ask what runs in the background to end, and expect it to do so well."""
        for process in self._background:
            running = process.poll() is None
            process.terminate()
            code = process.wait(timeout=60)
            assert running, f"{process.args!r} had ended by itself, with {code}"
            assert code == 0, f"{process.args!r} ended with {code}"
        self._background.clear()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    with closing(Checkout(tmp_path)) as made:
        yield made


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(
            found["kind"],
            found["text"],
            found["mark"],
            text.count("\n", 0, found.start("text")),
        )
        for found in _BLOCK.finditer(text)
    ]


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a ``console`` block, with the output that is shown of it."""
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def assert_same(printed: str, shown: str, where: str, root: Path) -> None:
    """``printed`` is what the page shows, up to what varies."""
    got = _normal(printed.replace(str(root.resolve()), SHOWN_ROOT))
    want = _normal(shown)
    pattern = "\n".join(r"[\s\S]*" if line == "…" else re.escape(line) for line in want)
    if not re.fullmatch(pattern, "\n".join(got)):
        assert got == want, f"{where}: the page shows something else; printed was:\n{printed}"


def _normal(output: str) -> list[str]:
    lines = []
    for line in output.rstrip("\n").split("\n"):
        for varies, name in _VARIES:
            line = varies.sub(name, line)
        lines.append(line.strip())
    return lines


def follow(page: Path, checkout: Checkout) -> int:
    """Do all that the page says; how many commands and programs that were."""
    done = 0
    all_blocks = [block for block in blocks(page) if block.mark != "skip"]
    for block, following in pairwise([*all_blocks, Block("", "", None, 0)]):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.mark == "background":
            for command, _ in commands(block):
                checkout.start(command)
        elif block.kind == "console":
            shown_commands = [*commands(block), ("", "")]
            for (command, shown), (following_command, _) in pairwise(shown_commands):
                printed = checkout.run(command)
                assert_same(printed, shown, f"{where}: {command}", checkout.folder)
                if following_command != "echo $?":
                    assert checkout.code == 0, f"{where}: {command}: exit code {checkout.code}"
                done += 1
        elif file := _FILE.match(block.text):
            (checkout.folder / file[1]).write_text(block.text, "utf-8")
        elif block.kind == "python":
            printed = checkout.python(block.text)
            assert checkout.code == 0, f"{where}: exit code {checkout.code}\n{printed}"
            shown = following.text if following.kind == "text" else ""
            assert_same(printed, shown, where, checkout.folder)
            done += 1
    return done


def test_the_readme_does_what_it_says(checkout: Checkout) -> None:
    started = time.monotonic()
    assert follow(ROOT / "README.md", checkout) >= 15
    assert time.monotonic() - started < 300, "five minutes, it says"


def test_the_guide_to_the_client_does_what_it_says(checkout: Checkout) -> None:
    assert follow(ROOT / "docs" / "guide" / "client.md", checkout) >= 4


def test_only_what_cannot_run_here_is_left_out() -> None:
    skipped = [b.text for b in blocks(ROOT / "README.md") if b.mark == "skip"]
    assert skipped == ["$ bin/test\n"]


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in _LINK.findall(page.read_text("utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert not broken
