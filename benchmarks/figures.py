"""One figure of a benchmark: what was measured, beside its baseline and its goal."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should reach; every bound that is given must hold."""

    value_at_least: float | None = None
    value_at_most: float | None = None
    ratio_at_least: float | None = None
    ratio_at_most: float | None = None

    def __str__(self) -> str:
        bounds = (
            ("value >= ", self.value_at_least),
            ("value <= ", self.value_at_most),
            ("ratio >= ", self.ratio_at_least),
            ("ratio <= ", self.ratio_at_most),
        )
        return " and ".join(f"{word}{bound:g}" for word, bound in bounds if bound is not None)

    def met(self, value: float, ratio: float | None) -> bool:
        """Whether every bound holds."""
        checks: list[tuple[float | None, float | None, Callable[[float, float], bool]]] = [
            (value, self.value_at_least, float.__ge__),
            (value, self.value_at_most, float.__le__),
            (ratio, self.ratio_at_least, float.__ge__),
            (ratio, self.ratio_at_most, float.__le__),
        ]
        return all(
            found is not None and holds(float(found), float(bound))
            for found, bound, holds in checks
            if bound is not None
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value. ``against`` names the baseline, in words, for the table."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    against: str = ""
    goal: Goal | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.baseline if self.baseline else None

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.goal.met(self.value, self.ratio)

    def as_json(self) -> str:
        """The one line that the programs end with."""
        return json.dumps(
            {
                "name": self.name,
                "value": _rounded(self.value),
                "unit": self.unit,
                "baseline": _rounded(self.baseline),
                "ratio": _rounded(self.ratio),
                "goal": None if self.goal is None else str(self.goal),
                "met": self.met,
            }
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def show(figures: Sequence[Figure], title: str, console: Console) -> None:
    """A table for people."""
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("baseline", justify="right")
    table.add_column("against")
    table.add_column("ratio", justify="right")
    table.add_column("goal")
    table.add_column("met")
    for figure in figures:
        met = {None: "", True: "[green]yes", False: "[red]MISSED"}[figure.met]
        table.add_row(
            figure.name,
            _shown(figure.value),
            figure.unit,
            _shown(figure.baseline),
            figure.against,
            _shown(figure.ratio),
            str(figure.goal or ""),
            met,
        )
    console.print(table)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all are not above (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


__all__ = ["Figure", "Goal", "median", "percentile", "show"]
