"""What it costs to call the command line: ``pinq --help``, and ``pinq enqueue`` of one file.

Beside ``python -c "import click"``, which any program with click pays. All take turns; the
median counts.
"""

import hashlib
from pathlib import Path

from benchmarks.figures import Figure, Goal, median
from benchmarks.options import Options
from benchmarks.photographs import photographs
from benchmarks.processes import PINQ, PYTHON, Ran, run, scratch


def measure(options: Options) -> list[Figure]:
    """Every command in turn, so often."""
    rounds = 2 if options.quick else options.rounds or 15
    megapixels = (0.1, 0.3) if options.quick else (0.3, 12.0)
    photo = (photographs(2, megapixels=megapixels) / "000000.jpg").read_bytes()
    helped: list[Ran] = []
    fresh: list[Ran] = []
    existing: list[Ran] = []
    click: list[Ran] = []
    with scratch() as folder:
        old_home = folder / "old"
        _enqueue(old_home, _another(folder, photo, 0), folder)
        for number in range(1, rounds + 1):
            file = _another(folder, photo, number)
            click.append(run([PYTHON, "-c", "import click"], cwd=folder))
            helped.append(run([PINQ, "--help"], cwd=folder))
            fresh.append(_enqueue(folder / f"new-{number}", file, folder))
            existing.append(_enqueue(old_home, file, folder))
    against = 'python -c "import click"'
    click_wall = median(ran.wall_seconds for ran in click)
    return [
        Figure(
            "cli.help.user_cpu",
            median(ran.user_seconds for ran in helped),
            "s",
            median(ran.user_seconds for ran in click),
            against,
            Goal(value_at_most=0.25),
        ),
        Figure(
            "cli.enqueue_one.existing_home",
            median(ran.wall_seconds for ran in existing),
            "s",
            click_wall,
            against,
            Goal(value_at_most=0.6),
        ),
        Figure(
            "cli.enqueue_one.fresh_home",
            median(ran.wall_seconds for ran in fresh),
            "s",
            click_wall,
            against,
            Goal(value_at_most=0.6),
        ),
    ]


def _enqueue(home: Path, file: Path, cwd: Path) -> Ran:
    return run([PINQ, "--home", str(home), "enqueue", str(file)], cwd=cwd)


def _another(folder: Path, photo: bytes, number: int) -> Path:
    """The photograph with other bytes: a comment after its end."""
    file = folder / f"{hashlib.blake2b(bytes([number]), digest_size=4).hexdigest()}.jpg"
    file.write_bytes(photo + bytes([number]))
    return file
