"""``pinq run`` on photographs, against two bare loops, and the set-up built by hand.

Every contender is a fresh process on the same files, read once before so that all come from
the page cache; they take turns, and the best round of each counts. Images per second are of
the whole process, from its start to its exit: interpreter, torch's import, shutdown and all.
``marginal`` leaves starting and ending out, by the same sum for all: the time for all the
photographs less the time that the same program took for the first few of them.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import redis

from benchmarks import hand_built
from benchmarks.figures import Figure, Goal
from benchmarks.options import Options
from benchmarks.photographs import photographs
from benchmarks.processes import (
    CORES,
    PINQ,
    PYTHON,
    Broken,
    environment,
    run,
    scratch,
    started,
    warm,
)
from tests.servers import RedisServer, missing


@dataclass(frozen=True, slots=True)
class _Round:
    wall_seconds: float
    cpu_seconds: float


Contender = Callable[[Path, int], _Round]


def _pinq(folder: Path, count: int) -> _Round:
    with scratch() as home:
        ran = run([PINQ, "--home", str(home / "home"), "run", str(folder), "--json"], cwd=home)
        report = json.loads(ran.stdout)
        if report["succeeded"] != count:
            raise Broken(f"pinq run did not compute {count} photographs: {report}")
    return _Round(ran.wall_seconds, ran.cpu_seconds)


def _bare(kind: str) -> Contender:
    def contender(folder: Path, count: int) -> _Round:
        with scratch() as place:
            ran = run([PYTHON, "-m", "benchmarks.bare_loop", kind, str(folder)], cwd=place)
            if json.loads(ran.stdout)["images"] != count:
                raise Broken(f"the bare loop did not compute {count} photographs")
        return _Round(ran.wall_seconds, ran.cpu_seconds)

    return contender


def _hand_built(folder: Path, count: int) -> _Round:
    """From the start of sender and workers to the last value stored.

    The wall time has neither Redis's start in it nor the end of any process; the CPU time
    is of all of them, Redis too, to their ends.
    """
    dramatiq = str(Path(PYTHON).with_name("dramatiq"))
    workers = [dramatiq, "benchmarks.hand_built", "--processes", str(CORES), "--threads", "1"]
    with scratch() as place:
        with RedisServer(place, appendfsync="everysec") as server:
            client = redis.Redis.from_url(server.url)
            env = environment(HAND_BUILT_REDIS=server.url)
            begun = time.perf_counter()
            with started(workers, log=place / "workers.log", cwd=place, env=env) as boss:
                sender = [PYTHON, "-m", "benchmarks.hand_built", str(folder)]
                sent = run(sender, cwd=place, env=env)
                while int(client.get(hand_built.DONE) or 0) < count:
                    if not boss.running():
                        raise Broken(boss.told())
                    time.sleep(0.02)
                wall = time.perf_counter() - begun
        cpu = sent.cpu_seconds + boss.cpu_seconds + server.cpu_seconds
        return _Round(wall, cpu)


def measure(options: Options) -> list[Figure]:
    """All contenders in turn."""
    count = 16 if options.quick else 2000
    few = min(count, CORES)
    rounds = 1 if options.quick else options.rounds or 3
    megapixels = (0.1, 0.3) if options.quick else (0.3, 12.0)
    options.say(f"run: making {count} photographs")
    folder = photographs(count, megapixels=megapixels)
    first = photographs(few, megapixels=megapixels)
    warm(sorted(folder.iterdir()))

    contenders: dict[str, Contender] = {
        "pinq run": _pinq,
        f"{CORES} threads": _bare("threads"),
        f"{CORES} processes": _bare("processes"),
    }
    if missing("redis") is None:
        contenders["dramatiq + Redis"] = _hand_built
    whole: dict[str, list[_Round]] = {name: [] for name in contenders}
    starting: dict[str, list[_Round]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            if not options.quick:
                starting[name].append(contender(first, few))
            whole[name].append(contender(folder, count))
            told = whole[name][-1]
            rate, cpu = count / told.wall_seconds, 1000 * told.cpu_seconds / count
            cores = told.cpu_seconds / told.wall_seconds
            options.say(
                f"run: round {number + 1}, {name}: {rate:.1f} images/s, "
                f"{cpu:.1f} ms of CPU an image, {cores:.2f} cores"
            )
    return list(_figures(whole, starting, count, few))


def _figures(
    whole: dict[str, list[_Round]], starting: dict[str, list[_Round]], count: int, few: int
) -> list[Figure]:
    rate = {name: max(count / r.wall_seconds for r in done) for name, done in whole.items()}
    cpu = {name: min(1000 * r.cpu_seconds / count for r in done) for name, done in whole.items()}
    loops = [name for name in whole if name not in ("pinq run", "dramatiq + Redis")]
    better = max(loops, key=lambda name: rate[name])

    figures = [
        Figure(
            "run.images_per_second",
            rate["pinq run"],
            "images/s",
            rate[better],
            f"the better bare loop: {better}",
            Goal(ratio_at_least=0.9),
        ),
        Figure(
            "run.cpu_per_image",
            cpu["pinq run"],
            "ms",
            cpu[better],
            f"the better bare loop: {better}",
            Goal(ratio_at_most=1.1),
        ),
    ]
    if all(starting.values()):
        start = {name: min(r.wall_seconds for r in done) for name, done in starting.items()}
        marginal = {
            name: (count - few) / (min(r.wall_seconds for r in whole[name]) - start[name])
            for name in whole
        }
        best = max(loops, key=lambda name: marginal[name])
        figures += [
            Figure(
                "run.images_per_second.marginal",
                marginal["pinq run"],
                "images/s",
                marginal[best],
                f"the better bare loop: {best}",
            ),
            Figure(
                "run.start_and_end",
                start["pinq run"],
                "s",
                start[better],
                f"{few} photographs by {better}",
            ),
        ]
    for name in (*loops, "dramatiq + Redis"):
        if name not in whole:
            continue
        label = name.replace(" + ", "_").replace(" ", "_").lower()
        figures += [
            Figure(f"run.{label}.images_per_second", rate[name], "images/s", rate[better], better),
            Figure(f"run.{label}.cpu_per_image", cpu[name], "ms", cpu[better], better),
        ]
    return figures
