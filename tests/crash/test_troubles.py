"""What a run meets on a bad day: a word that helps, an exit code, and nothing lost."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pinq.config import load
from pinq.queue.model import Filter, State
from pinq.queue.tables import REVISION
from pinq.queue.urls import open_queue

from ..conftest import MakeDisk, remount
from .conftest import Home

FAILED = 3


@pytest.fixture
def small_disk(make_disk: MakeDisk) -> Path:
    return make_disk(24)


def fill(folder: Path) -> Path:
    """Leave no space at all."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return filler


@pytest.mark.parametrize("part", ["queue", "store", "events"])
def test_a_disk_that_fills_up_is_told_and_the_next_run_completes(
    part: str, small_disk: Path, make_home: Callable[..., Home]
) -> None:
    home = make_home(patience_seconds=0.5)
    home.make_images(300)
    urls = {
        "queue": f'queue = "sqlite:///{small_disk}/queue.db"',
        "store": f'store = "rocksdb:///{small_disk}/signals"',
        "events": f'events = ["file:///{small_disk}/events"]',
    }
    home.config.write_text(f"{urls[part]}\n{home.config.read_text()}")
    running = home.start("run", str(home.images))
    home.wait_for_progress()
    filler = fill(small_disk)
    _, said = running.communicate(timeout=60)
    assert running.returncode == FAILED, said
    assert "no space" in said.lower(), said
    assert "Traceback" not in said
    filler.unlink()
    code, said = home.pinq("run", str(home.images))
    assert code == 0, said
    for name, place in (("queue.db", "queue"), ("events", "events")):
        if place == part:
            target = home.home / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(small_disk, home.home, dirs_exist_ok=True)
    home.look(deaths=1, jobs=300)


def test_a_disk_that_is_full_for_a_moment_is_waited_out(
    small_disk: Path, make_home: Callable[..., Home]
) -> None:
    home = make_home(patience_seconds=60, lease_seconds=60.0)
    home.make_images(300)
    home.config.write_text(f'store = "rocksdb:///{small_disk}/signals"\n{home.config.read_text()}')
    running = home.start("run", str(home.images))
    home.wait_for_progress()
    filler = fill(small_disk)
    threading.Timer(2.0, filler.unlink).start()
    _, said = running.communicate(timeout=100)
    assert running.returncode == 0, said
    home.look(deaths=0, jobs=300)


def test_a_second_run_on_the_same_home_is_told_who_is_there(
    make_home: Callable[..., Home],
) -> None:
    home = make_home(lease_seconds=60.0)
    home.make_images()
    # Held still in the middle, so that it cannot be done before the second begins.
    first = home.start("run", str(home.images), failpoints="after_put=stop@4")
    home.wait_for_progress()
    code, said = home.pinq("run", str(home.images))
    assert code == FAILED
    assert str(first.pid) in said and "Traceback" not in said
    os.kill(first.pid, signal.SIGCONT)
    # Work can be added beside it, and looked at.
    assert home.pinq("enqueue", str(home.images))[0] == 0
    assert home.pinq("jobs", "ls", "--limit", "3")[0] == 0
    _, said = first.communicate(timeout=60)
    assert first.returncode == 0, said
    home.look(deaths=0)


def test_a_read_only_home_is_told_and_still_read(
    small_disk: Path, make_home: Callable[..., Home]
) -> None:
    home = make_home()
    home.make_images(20)
    where = ("--home", str(small_disk / "home"))
    assert home.pinq(*where, "run", str(home.images))[0] == 0
    remount(small_disk, "ro")
    try:
        for command in (("run", str(home.images)), ("enqueue", str(home.images)), ("worker",)):
            code, said = home.pinq(*where, *command)
            assert code == FAILED, said
            assert "writ" in said or "Read-only" in said
            assert "Traceback" not in said
    finally:
        remount(small_disk, "rw")
    assert home.pinq(*where, "run", str(home.images))[0] == 0


def test_a_home_of_a_newer_version_is_refused_and_left_alone(
    make_home: Callable[..., Home],
) -> None:
    home = make_home(lease_seconds=60.0)
    home.make_images(20)
    assert home.pinq("run", str(home.images))[0] == 0
    database = sqlite3.connect(home.home / "queue.db")
    database.execute("UPDATE pinq_revision SET version_num = 'ffff'")
    database.commit()
    for command in (("run", str(home.images)), ("jobs", "ls"), ("db", "upgrade")):
        code, said = home.pinq(*command)
        assert code == FAILED and "newer pinq" in said, said
    database.execute(f"UPDATE pinq_revision SET version_num = '{REVISION}'")
    database.commit()
    database.close()
    home.look(deaths=0, jobs=20)


@pytest.mark.parametrize("victim", ["MANIFEST-*", "CURRENT", "*.sst"])
def test_a_damaged_store_is_told_and_can_be_computed_again(
    victim: str, make_home: Callable[..., Home]
) -> None:
    home = make_home()
    home.make_images(20)
    assert home.pinq("run", str(home.images))[0] == 0
    # A second owner flushes the log of the first into a table.
    assert home.pinq("run", str(home.images), "--retry-dead")[0] == 0
    assert home.pinq("worker", "--until-empty")[0] == 0
    damaged = sorted((home.home / "signals").glob(victim))
    assert damaged
    for path in damaged:
        path.write_bytes(random.Random(1).randbytes(path.stat().st_size))
    code, said = home.pinq("worker", "--until-empty")
    if code == 0:  # damage inside a table shows only when it is read
        code, said = home.pinq("enqueue", "--force", str(home.images))
        assert code == 0, said
        code, said = home.pinq("get", load_any_signature(home))
    assert code == FAILED, said
    assert str(home.home / "signals") in said and "Traceback" not in said
    shutil.move(home.home / "signals", home.folder / "damaged")
    assert home.pinq("enqueue", "--force", str(home.images))[0] == 0
    assert home.pinq("worker", "--until-empty")[0] == 0
    assert home.pinq("relay", "--until-empty")[0] == 0
    settings = load(home.config)
    queue = open_queue(settings.queue)
    assert queue.count("default").succeeded == 20
    queue.close()


def load_any_signature(home: Home) -> str:
    queue = open_queue(load(home.config).queue)
    signature = next(iter(queue.scan())).key
    queue.close()
    return signature


def test_a_database_locked_for_long_is_told_and_for_a_moment_is_waited_for(
    make_home: Callable[..., Home],
) -> None:
    home = make_home(patience_seconds=0.5)
    home.make_images(20)
    home.config.write_text(
        'queue = "sqlite:///home/queue.db?busy_timeout_seconds=0.3"\n' + home.config.read_text()
    )
    assert home.pinq("db", "upgrade")[0] == 0
    holder = sqlite3.connect(home.home / "queue.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    for command in (("enqueue", str(home.images)), ("run", str(home.images))):
        code, said = home.pinq(*command)
        assert code == FAILED, said
        assert "lock" in said and "Traceback" not in said
    holder.execute("ROLLBACK")
    home.config.write_text(home.config.read_text().replace("=0.3", "=20"))
    holder.execute("BEGIN IMMEDIATE")
    threading.Timer(1.0, lambda: holder.execute("ROLLBACK")).start()
    code, said = home.pinq("run", str(home.images))
    assert code == 0, said
    holder.close()


def test_images_that_vanish_are_dead_at_once_and_cost_the_others_nothing(
    make_home: Callable[..., Home],
) -> None:
    home = make_home()
    home.make_images(40)
    assert home.pinq("enqueue", str(home.images))[0] == 0
    for n in range(5):
        (home.images / f"{n}.jpg").unlink()
    (home.images / "5.jpg").write_bytes((home.images / "6.jpg").read_bytes())
    code, said = home.pinq("worker", "--until-empty")
    assert code == 0, said
    queue = open_queue(load(home.config).queue)
    counts = queue.count("default")
    attempts = {job.attempts for job in queue.scan(Filter(states=[State.DEAD]))}
    queue.close()
    assert (counts.succeeded, counts.dead) == (34, 6)
    assert counts.dead_by_class == {"fetch_gone": 5, "signature_mismatch": 1}
    assert attempts == {1}


def test_a_pipe_of_signals_ends_a_run_politely_and_the_next_goes_on(
    make_home: Callable[..., Home],
) -> None:
    home = make_home(lease_seconds=60.0)
    home.make_images(400)
    running = home.start("run", str(home.images))
    home.wait_for_progress()
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "Traceback" not in said
    home.nothing_is_leased()
    assert home.pinq("run", str(home.images))[0] == 0
    home.look(deaths=0, jobs=400)


def test_a_long_list_is_enqueued_in_flat_memory(make_home: Callable[..., Home]) -> None:
    home = make_home()

    def peak(lines: int) -> int:
        path = home.folder / f"{lines}.csv"
        with path.open("w") as file:
            file.write("signature,uri\n")
            for n in range(lines):
                file.write(f"{lines}-{n:032x},https://images.example/{n}.jpg\n")
        script = (
            "import resource, subprocess, sys;"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        command = [sys.executable, "-m", "pinq", "--config", str(home.config)]
        found = subprocess.run(
            [sys.executable, "-c", script, *command, "enqueue", "--from", str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(found.stdout)

    few, many = peak(2_000), peak(60_000)
    assert many - few < 24 * 1024  # KiB; SQLite's page cache is 32 MiB at most
