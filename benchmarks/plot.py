"""Pictures of the figures: ``python -m benchmarks.plot FIGURES… [--to docs/images/queue.png]``.

FIGURES are files of what the benchmarks print: ``bin/bench queue flat --json > figures.json``.
On the left, jobs/s by system (``queue.systems``); on the right, the cost of a job by how many
others are in the table (``flat``). What is not in the files is left out.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {
    "pinq_sqlite": "pinq on SQLite",
    "pinq_postgresql": "pinq on PostgreSQL",
    "pinq_mariadb": "pinq on MariaDB",
    "pinq_redis": "pinq on Redis",
    "pgqueuer": "PgQueuer (PostgreSQL)",
    "procrastinate": "procrastinate (PostgreSQL)",
    "dramatiq": "dramatiq (Redis)",
    "rq": "RQ (Redis)",
    "huey": "huey (SQLite)",
    "litequeue": "litequeue (SQLite)",
}
_BACKENDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
_OURS, _OTHERS = "#2f6f9f", "#b8b8b8"
_COLORS = {"sqlite": "#2f6f9f", "postgresql": "#c2703d"}
_LINES = {"pending": "-", "finished": "--"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job costs with so many others in the table."""

    backend: str
    state: str
    rows: int
    us_per_job: float


def read(files: Iterable[Path]) -> tuple[dict[str, float], list[Cost]]:
    """Jobs/s by system, and costs, from files of one JSON object a line."""
    rates: dict[str, float] = {}
    costs: list[Cost] = []
    for file in files:
        for line in file.read_text().splitlines():
            figure = json.loads(line)
            match figure["name"].split("."):
                case ["queue", "systems", slug, "jobs_per_second"]:
                    rates[slug] = figure["value"]
                case ["flat", backend, state, rows]:
                    costs.append(Cost(backend, state, int(rows), figure["value"]))
    return rates, costs


def draw(rates: dict[str, float], costs: Sequence[Cost], to: Path) -> None:
    """Both charts, or the one there are figures for, as a PNG."""
    charts = [chart for chart, figures in ((_rates, rates), (_costs, costs)) if figures]
    figure, places = pyplot.subplots(
        1, len(charts), figsize=(7 * len(charts), 4.5), squeeze=False, layout="constrained"
    )
    for chart, place in zip(charts, places[0], strict=True):
        chart(place, rates, costs)
        place.spines[["top", "right"]].set_visible(False)
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=120)
    pyplot.close(figure)


def _rates(place: "Axes", rates: dict[str, float], costs: Sequence[Cost]) -> None:
    slugs = sorted(rates, key=lambda slug: rates[slug])
    colors = [_OURS if slug.startswith("pinq") else _OTHERS for slug in slugs]
    bars = place.barh([_NAMES.get(slug, slug) for slug in slugs], [rates[s] for s in slugs])
    for bar, color in zip(bars, colors, strict=True):
        bar.set_color(color)
    place.bar_label(bars, [f"{rates[slug]:,.0f}" for slug in slugs], padding=3, fontsize=9)
    place.margins(x=0.12)
    place.set_title("Jobs a second: enqueue, run, acknowledge", loc="left")
    place.xaxis.set_major_formatter("{x:,.0f}")


def _costs(place: "Axes", rates: dict[str, float], costs: Sequence[Cost]) -> None:
    lines: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    for cost in costs:
        lines[cost.backend, cost.state].append(cost)
    for (backend, state), points in lines.items():
        points.sort(key=lambda cost: cost.rows)
        place.plot(
            [cost.rows for cost in points],
            [cost.us_per_job for cost in points],
            marker="o",
            color=_COLORS.get(backend),
            linestyle=_LINES.get(state, ":"),
            label=f"{_BACKENDS.get(backend, backend)}, {state}",
        )
    place.set_xscale("log")
    place.set_ylim(bottom=0)
    place.set_title("Microseconds a job, by jobs in the table", loc="left")
    place.legend(frameon=False)


def main() -> None:
    """Read the files named, write the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot")
    parser.add_argument("figures", nargs="+", type=Path, metavar="FIGURES")
    parser.add_argument("--to", type=Path, default=Path("docs/images/queue.png"))
    chosen = parser.parse_args()
    rates, costs = read(chosen.figures)
    if not rates and not costs:
        parser.error("no figures of queue.systems or flat are in these files")
    draw(rates, costs, chosen.to)
    print(chosen.to)


if __name__ == "__main__":
    main()
