"""The benchmarks run, and end with figures in the agreed form. How fast is not asked here."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["name", "value", "unit", "baseline", "ratio", "goal", "met"]
FIGURES: dict[str, dict[str, str | None]] = {
    "run": {
        "run.images_per_second": "ratio >= 0.9",
        "run.cpu_per_image": "ratio <= 1.1",
    },
    "queue": {
        "queue.jobs_per_second": "ratio >= 0.7",
        "queue.with_events.jobs_per_second": None,
    },
    "cli": {
        "cli.help.user_cpu": "value <= 0.25",
        "cli.enqueue_one.fresh_home": "value <= 0.6",
        "cli.enqueue_one.existing_home": "value <= 0.6",
    },
    "memory": {"memory.worker_rss.peak": None},
    "flat": {f"flat.sqlite.{state}.1000": "ratio <= 1.2" for state in ("pending", "finished")},
    "actors": {"actors.sqlite.jobs_per_second": None},
    "together": {"together.4_processes.jobs_per_second": "ratio >= 1"},
    "latency": {
        f"latency{series}.{what}.{which}": None
        for series in ("", ".after_idle")
        for what in ("start", "readable", "announced")
        for which in ("median", "p99")
    },
}


@pytest.fixture(scope="module", autouse=True)
def _photographs_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINQ_BENCH_DIR", str(tmp_path_factory.mktemp("bench")))
        yield
    _measured.cache_clear()


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@cache
def _measured(program: str) -> dict[str, dict[str, Any]]:
    ran = _bench(program, "--quick", "--json")
    assert ran.returncode == 0, ran.stderr
    figures = [json.loads(line) for line in ran.stdout.splitlines()]
    return {figure["name"]: figure for figure in figures}


@pytest.mark.parametrize("program", sorted(FIGURES))
def test_a_program_ends_with_one_object_a_figure(program: str) -> None:
    figures = _measured(program)
    for figure in figures.values():
        assert list(figure) == KEYS
        assert figure["name"].startswith(f"{program}.")
        assert figure["value"] > 0
        assert figure["unit"]
        assert (figure["baseline"] is None) == (figure["ratio"] is None)
        if figure["ratio"] is not None:
            assert figure["ratio"] == pytest.approx(figure["value"] / figure["baseline"], rel=1e-3)
        assert (figure["goal"] is None) == (figure["met"] is None)
        assert figure["met"] in (None, True, False)
    for name, goal in FIGURES[program].items():
        assert figures[name]["goal"] == goal


def test_flat_memory_is_a_goal_in_per_cent_and_in_mebibytes() -> None:
    goal = _measured("memory")["memory.worker_rss"]["goal"]
    assert "value <= " in goal
    assert "ratio <= 1.05" in goal


def test_both_bare_loops_stand_beside_the_run() -> None:
    names = _measured("run")
    cores = len(os.sched_getaffinity(0))
    for kind in ("threads", "processes"):
        assert f"run.{cores}_{kind}.images_per_second" in names


def test_the_set_up_built_by_hand_stands_beside_the_run() -> None:
    if shutil.which("redis-server") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    assert _measured("run")["run.dramatiq_redis.images_per_second"]["goal"] is None


def test_the_programs_are_listed() -> None:
    listed = _bench("--list")
    assert listed.returncode == 0
    names = [line.split("\t")[0] for line in listed.stdout.splitlines()]
    assert names == ["run", "queue", "cli", "memory", "actors", "latency", "together", "flat"]


def test_an_unknown_program_is_wrong_usage() -> None:
    refused = _bench("warp-drive")
    assert refused.returncode == 2
    assert "warp-drive" in refused.stderr
    assert "latency" in refused.stderr
