"""``python -m benchmarks``: see ``--help``."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console

from benchmarks.figures import Figure, show
from benchmarks.options import Options

PROGRAMS = {
    "run": "pinq run on 2,000 photographs, against bare loops and dramatiq with Redis",
    "queue": "the queue alone, against a bare sqlite3 loop and other people's queues",
    "cli": "how long pinq --help and pinq enqueue take",
    "memory": "the memory of pinq worker over 20,000 images",
    "actors": "dramatiq actors one message at a time, against dramatiq's own Redis broker",
    "latency": "one image at a time: to its lease, its value and its event; one job, beside others",
    "together": "worker processes on one SQLite queue, against one alone",
    "flat": "what a job costs with up to five million others in the table",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the programs named, or all; exit code 0 also where a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="bin/bench",
        description="Measure pinq and its baselines in turn. JSON, one object a figure, on stdout; "
        "what is being done, and a table, on stderr.",
        epilog="Programs: " + "; ".join(f"{name}: {told}" for name, told in PROGRAMS.items()),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which programs; all by default")
    parser.add_argument("--json", action="store_true", help="no table, only the JSON")
    parser.add_argument("--list", action="store_true", help="list the programs and end")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: for trying it out")
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="how many rounds")
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        help="beside other people's queues, on servers of the benchmark's own; they are installed "
        "on first use (by default; not with --quick)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.list:
        for name, told in PROGRAMS.items():
            print(f"{name}\t{told}")
        return 0
    for name in chosen.names:
        if name not in PROGRAMS:
            parser.error(f"no program is called {name!r}; there are: {', '.join(PROGRAMS)}")
    options = Options(
        quick=chosen.quick,
        rounds=max(0, chosen.rounds),
        peers=not chosen.quick if chosen.peers is None else chosen.peers,
    )
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    for name in chosen.names or PROGRAMS:
        figures: list[Figure] = import_module(f"benchmarks.{name}").measure(options)
        if not chosen.json:
            title = f"{name} (--quick: these figures mean nothing)" if chosen.quick else name
            show(figures, title, console)
        for figure in figures:
            print(figure.as_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
