"""The installed ``pinq``, driven as a person or a script would."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PHOTOS = Path(__file__).parents[1] / "data" / "photos"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every line of stdout as JSON: nothing else may be there."""
        return [json.loads(line) for line in self.out.splitlines()]


Pinq = Callable[..., Ended]


@pytest.fixture
def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PINQ_")}
    return kept | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def program() -> str:
    return str(Path(sys.executable).with_name("pinq"))


@pytest.fixture
def pinq(tmp_path: Path, environment: dict[str, str], program: str) -> Pinq:
    """Run ``pinq`` in a folder of its own, to its end."""

    def call(*words: str | bytes, stdin: bytes = b"", **env: str) -> Ended:
        done = subprocess.run(
            [program, *words],
            cwd=tmp_path,
            env=environment | env,
            input=stdin,
            capture_output=True,
            timeout=120,
            check=False,
        )
        return Ended(
            done.returncode,
            done.stdout.decode("utf-8"),
            done.stderr.decode("utf-8"),
        )

    return call
