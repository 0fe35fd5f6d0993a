"""kill -9 at every step, and at any moment: nothing is lost, nothing is done twice in effect."""

import os
import random
import signal
import subprocess
from collections.abc import Callable

import pytest

from pinq.queue.urls import open_queue

from .conftest import Home

KILLED = -signal.SIGKILL


@pytest.mark.parametrize("point", ["after_lease", "after_put", "before_finish", "after_finish"])
def test_a_worker_killed_at_a_step_loses_nothing(
    point: str, make_home: Callable[..., Home]
) -> None:
    home = make_home()
    home.make_images()
    assert home.pinq("enqueue", str(home.images))[0] == 0
    deaths = 0
    for nth in (1, 3):
        code, said = home.pinq("worker", "--until-empty", failpoints=f"{point}=kill@{nth}")
        assert code == KILLED, said
        deaths += 1
    code, said = home.pinq("worker", "--until-empty")
    assert code == 0, said
    code, said = home.pinq("relay", "--until-empty")
    assert code == 0, said
    home.look(deaths=deaths)


def test_a_relay_killed_at_any_step_publishes_everything_with_the_same_ids(
    make_home: Callable[..., Home],
) -> None:
    home = make_home(lease_seconds=60.0)
    home.make_images()
    assert home.pinq("enqueue", str(home.images))[0] == 0
    assert home.pinq("worker", "--until-empty")[0] == 0
    for point in ("before_publish", "after_publish", "before_mark"):
        assert home.pinq("relay", "--until-empty", failpoints=f"{point}=kill")[0] == KILLED
    published = sorted((home.home / "events").glob("*.jsonl"))
    assert len(published) == 2, "twice accepted, never marked"
    assert home.pinq("relay", "--until-empty")[0] == 0
    home.look(deaths=0)


def test_a_run_killed_at_random_times_is_resumed_by_the_next(
    make_home: Callable[..., Home],
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    # Nobody could wait for these leases: what a dead process held is taken over at once.
    home = make_home(lease_seconds=600.0)
    home.make_images()
    deaths = 0
    for _ in range(6):
        process = home.start("run", str(home.images))
        try:
            process.communicate(timeout=dice.uniform(1.5, 5.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        deaths += process.returncode == KILLED
    code, said = home.pinq("run", str(home.images))
    assert code == 0, said
    home.look(deaths=deaths)


def test_a_worker_stopped_past_its_lease_is_refused_when_it_wakes(
    make_home: Callable[..., Home],
) -> None:
    # One batch, so that no other thread is stopped while it holds SQLite's write lock.
    slow = make_home("slow", threads=1, lease_seconds=3.0)
    slow.make_images(16)
    # The same queue, but a store of its own: RocksDB has one owner.
    quick = make_home("quick", threads=1)
    quick.config.write_text(f'queue = "sqlite:///{slow.home}/queue.db"\n{quick.config.read_text()}')
    assert slow.pinq("enqueue", str(slow.images))[0] == 0
    stopped = slow.start("-v", "worker", "--until-empty", failpoints="before_finish=stop@1")
    _wait_until_stopped(stopped.pid)
    code, said = quick.pinq("-v", "worker", "--until-empty")
    assert code == 0, said
    stopped.send_signal(signal.SIGCONT)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 0, said
    assert "finish.refused" in said
    assert "refused=16" in said.splitlines()[-1]
    assert "succeeded=0" in said.splitlines()[-1]
    queue = open_queue(f"sqlite:///{slow.home}/queue.db")
    assert queue.count("default").succeeded == 16
    events = queue.unpublished(1000)
    queue.close()
    assert len({event.subject for event in events}) == len(events) == 16


def test_sigterm_gives_back_what_is_held_and_costs_no_attempt(
    make_home: Callable[..., Home],
) -> None:
    home = make_home(lease_seconds=60.0)
    home.make_images(400)
    assert home.pinq("enqueue", str(home.images))[0] == 0
    for number, so_far in ((signal.SIGTERM, 0), (signal.SIGINT, 80)):
        worker = home.start("-v", "worker")
        home.wait_for_progress(beyond=so_far)
        worker.send_signal(number)
        _, said = worker.communicate(timeout=60)
        assert worker.returncode in (0, 130), said
        home.nothing_is_leased()
    assert home.pinq("worker", "--until-empty")[0] == 0
    assert home.pinq("relay", "--until-empty")[0] == 0
    home.look(deaths=0, jobs=400)


@pytest.mark.parametrize("whom", ["main process", "process group"])
def test_dramatiqs_own_command_line_works_the_queue_and_stops_politely(
    whom: str, make_home: Callable[..., Home]
) -> None:
    home = make_home(lease_seconds=60.0)
    home.make_images()
    assert home.pinq("enqueue", str(home.images))[0] == 0
    worker = home.dramatiq()
    home.wait_for_progress()
    if whom == "main process":
        worker.send_signal(signal.SIGTERM)
    else:
        os.killpg(worker.pid, signal.SIGTERM)
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0, said
    home.nothing_is_leased()
    assert home.pinq("worker", "--until-empty")[0] == 0
    assert home.pinq("relay", "--until-empty")[0] == 0
    home.look(deaths=0)


def _wait_until_stopped(pid: int) -> None:
    """Until the kernel says the process is stopped."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
