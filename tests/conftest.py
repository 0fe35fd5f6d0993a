"""What every kind of test uses: a clock that moves only when told, photographs, small disks."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PHOTOS = Path(__file__).parent / "data" / "photos"


class FakeClock:
    """Milliseconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms

    def advance(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def photos() -> list[Path]:
    return sorted(PHOTOS.iterdir())


MakeDisk = Callable[[int], Path]


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[MakeDisk]:
    """Mounts file systems of so many MiB, to be filled or made read-only."""
    mounted: list[Path] = []

    def make(mib: int) -> Path:
        disk = tmp_path / f"disk{len(mounted)}"
        disk.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(disk)],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            reason = f"needs the right to mount: {made.stderr}"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
        mounted.append(disk)
        return disk

    yield make
    for disk in mounted:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def remount(disk: Path, option: str) -> None:
    """Change a mounted disk: ``ro``, ``rw``, ``size=8m``."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)
