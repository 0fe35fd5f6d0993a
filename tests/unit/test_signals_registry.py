"""Signals by name: the built-in ones, users' own, and every way a name can be wrong."""

import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from pinq.config import BUILTIN_SIGNALS, Settings, load
from pinq.errors import ConfigError, PinqError, SignalError
from pinq.signals.registry import render, signals_for
from pinq.store.contract import SignalValue

GOOD = """
from pinq import Computed, ImageInput, Signal

class Brightness(Signal):
    name = "whatever"
    version = 2
    input = ImageInput(height=8, width=8)
    dtype = "float32"
    shape = (1,)

    def compute(self, images):
        return Computed(images.float().mean(dim=(1, 2, 3)).unsqueeze(1) / 255)

    def render(self, data, meta):
        return {"rendered": len(data)}

def function(): ...
"""

INSTANCES = (
    GOOD
    + """
INSTANCE = Brightness()

class Nested:
    inner = INSTANCE
"""
)

numbers = count()


@pytest.fixture(autouse=True)
def unchanged_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for module in set(sys.modules) - before:
        if module.startswith("mine"):
            del sys.modules[module]


def settings_of(folder: Path, use: str, source: str = GOOD, extra: str = "") -> Settings:
    """Settings in ``folder`` that name signal ``glow``; ``{}`` in ``use`` is its module."""
    module = f"mine{next(numbers)}"
    (folder / f"{module}.py").write_text(source)
    (folder / "pinq.toml").write_text(f'[signals.glow]\nuse = "{use.format(module)}"\n{extra}')
    return load(folder / "pinq.toml")


def test_the_built_in_signals_are_found_by_name_in_order_and_once() -> None:
    found = signals_for(load(), ["quality", "pdq", "color", "pdq"])
    assert [(signal.name, signal.version) for signal in found] == [
        ("quality", 1),
        ("pdq", 1),
        ("color", 1),
    ]
    assert len(signals_for(load(), BUILTIN_SIGNALS)) == 3


@pytest.mark.parametrize("attribute", ["Brightness", "INSTANCE", "Nested.inner"])
def test_a_users_signal_stands_beside_the_settings_under_their_name(
    tmp_path: Path, attribute: str
) -> None:
    settings = settings_of(tmp_path, "{}:" + attribute, INSTANCES)
    (signal,) = signals_for(settings, ["glow"])
    assert (signal.name, signal.version, signal.shape) == ("glow", 2, (1,))


def test_a_users_signal_may_stand_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    settings = settings_of(there, "mine_in_cwd:Brightness")
    (here / "mine_in_cwd.py").write_text(GOOD)
    monkeypatch.chdir(here)
    assert signals_for(settings, ["glow"])[0].name == "glow"


def test_the_settings_version_overrides_the_signals_own(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "{}:Brightness", extra="version = 9\n")
    assert signals_for(settings, ["glow"])[0].version == 9


def test_one_instance_may_serve_under_two_names(tmp_path: Path) -> None:
    extra = '[signals.shine]\nuse = "mine_shared:INSTANCE"\nversion = 5\n'
    (tmp_path / "mine_shared.py").write_text(INSTANCES)
    settings = settings_of(tmp_path, "mine_shared:INSTANCE", extra=extra)
    found = signals_for(settings, ["glow", "shine"])
    assert [(signal.name, signal.version) for signal in found] == [("glow", 2), ("shine", 5)]


def test_an_unknown_name_is_told_the_nearest_one() -> None:
    with pytest.raises(SignalError, match=r"'pdg'; did you mean 'pdq'\?; known: color, pdq"):
        signals_for(load(), ["pdg"])


def test_a_built_ins_name_cannot_be_taken(tmp_path: Path) -> None:
    (tmp_path / "pinq.toml").write_text('[signals.pdq]\nuse = "json:loads"\n')
    settings = load(tmp_path / "pinq.toml")
    with pytest.raises(ConfigError, match=r"signals\.pdq has the name of a built-in signal"):
        signals_for(settings, ["pdq"])


@pytest.mark.parametrize(
    ("use", "source", "kind", "words"),
    [
        ("mine_missing:X", GOOD, ConfigError, "no module is called 'mine_missing'"),
        ("mine_missing.deep:X", GOOD, ConfigError, "no module is called 'mine_missing'"),
        ("{}:Brightnes", GOOD, ConfigError, "did you mean 'Brightness'"),
        ("{}:Nested.outer", INSTANCES, ConfigError, r"has no 'Nested\.outer'"),
        ("{}:function", GOOD, SignalError, "is function, not a signal"),
        ("{}:Nested", INSTANCES, SignalError, "is Nested, not a signal"),
        ("{}:X", "import mine_other_missing", ConfigError, "No module named 'mine_other_missing'"),
        ("{}:X", "1 / 0", ConfigError, "raised ZeroDivisionError"),
        ("{}:X", "raise SystemExit(3)", ConfigError, "raised SystemExit"),
        ("{}:X", "def broken(:", ConfigError, "raised SyntaxError"),
        ("{}:Brightness", GOOD.replace("version = 2", ""), SignalError, "has no version"),
        ("{}:Brightness", GOOD.replace("= 2", "= '2'"), SignalError, "version = '2'"),
        ("{}:Brightness", GOOD.replace("= 2", "= 0"), SignalError, "version = 0"),
        ("{}:Brightness", GOOD.replace("= 2", "= True"), SignalError, "version = True"),
        ("{}:Brightness", GOOD.replace("float32", "float"), SignalError, "dtype = 'float'"),
        ("{}:Brightness", GOOD.replace("(1,)", "(0,)"), SignalError, r"shape = \(0,\)"),
        ("{}:Brightness", GOOD.replace("(1,)", "1"), SignalError, "shape = 1"),
        ("{}:Brightness", GOOD.replace("(1,)", "(1 << 30,)"), SignalError, "at most 1048576"),
        (
            "{}:Brightness",
            GOOD.replace("ImageInput(height=8, width=8)", "(8, 8)"),
            SignalError,
            r"input = \(8, 8\)",
        ),
        ("{}:Brightness", GOOD.replace("height=8", "height=0"), SignalError, "height=0"),
        ("{}:Brightness", GOOD.replace("def compute", "def other"), SignalError, "compute"),
        (
            "{}:Brightness",
            GOOD.replace("    def compute", "    def __init__(self, path): ...\n    def compute"),
            SignalError,
            "made without arguments",
        ),
    ],
)
def test_whatever_is_wrong_with_a_users_signal_is_said(
    tmp_path: Path, use: str, source: str, kind: type[PinqError], words: str
) -> None:
    settings = settings_of(tmp_path, use, source)
    with pytest.raises(kind, match=words) as raised:
        signals_for(settings, ["glow"])
    assert "pinq.toml: signals.glow" in str(raised.value)


VALUE = SignalValue("float32", (1,), bytes(4), 0, {"note": "n"})
PLAIN = {"dtype": "float32", "shape": [1], "data": [0.0], "note": "n"}


def test_a_value_is_rendered_by_its_signal_at_the_same_version(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "{}:Brightness")
    assert render(settings, "glow", 2, VALUE) == {"rendered": 4}


def test_a_value_of_another_version_is_rendered_as_an_array(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "{}:Brightness")
    assert render(settings, "glow", 1, VALUE) == PLAIN


@pytest.mark.parametrize(
    "source", ["1 / 0", "raise SystemExit", GOOD.replace("len(data)", "1 // 0"), "def broken(:"]
)
def test_a_broken_module_does_not_break_a_look_up(tmp_path: Path, source: str) -> None:
    assert render(settings_of(tmp_path, "{}:Brightness", source), "glow", 2, VALUE) == PLAIN


def test_a_value_of_an_unknown_signal_is_rendered_as_an_array() -> None:
    assert render(load(), "long-gone", 7, VALUE) == PLAIN
