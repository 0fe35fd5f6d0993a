"""The guide's own example runs as it is printed."""

import re
import sys
from pathlib import Path

import pytest
import torch

from pinq.config import load
from pinq.inference.engine import Engine
from pinq.signals.registry import render, signals_for
from pinq.store.contract import SignalValue

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "signals.md"


def test_the_example_of_a_users_signal_works_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    code = next(text for kind, text in blocks if kind == "python")
    (tmp_path / "brightness.py").write_text(code)
    (tmp_path / "pinq.toml").write_text(next(text for kind, text in blocks if kind == "toml"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "brightness", raising=False)

    settings = load(tmp_path / "pinq.toml")
    signals = signals_for(settings, settings.pipeline("default").signals)
    signal = signals[-1]
    engine = Engine([signal], settings.worker)
    images = [torch.full((3, 64, 64), level, dtype=torch.uint8) for level in (0, 255)]
    dark, light = engine.compute(signal, images)

    assert isinstance(dark, SignalValue)
    assert isinstance(light, SignalValue)
    assert render(settings, "brightness", 1, dark)["data"] == [0.0]
    assert render(settings, "brightness", 1, dark)["night"] == 1
    assert render(settings, "brightness", 1, light)["data"] == [1.0]
    monkeypatch.delitem(sys.modules, "brightness")
