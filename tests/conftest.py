"""What every kind of test uses.

A clock that moves only when told, photographs, small disks, database servers.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import Kind, MariadbServer, PostgresServer, RedisServer, missing

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


def need(kind: Kind) -> None:
    """Skip what asks, where no such server can be started; fail it where all must run."""
    if (reason := missing(kind)) is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


# One of each for all tests, each of which takes a `fresh_database`. Not synced, which no test
# can notice: killed and started again they still have what was committed.


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    need("postgres")
    with PostgresServer(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariadbServer]:
    need("mariadb")
    with MariadbServer(tmp_path_factory.mktemp("mariadb"), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    need("redis")
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="everysec") as server:
        yield server
