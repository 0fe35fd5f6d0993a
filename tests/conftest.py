"""What every kind of test uses: a clock that moves only when told, and the photographs."""

from pathlib import Path

import pytest

PHOTOS = Path(__file__).parent / "data" / "photos"


class FakeClock:
    """Milliseconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms

    def advance(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def photos() -> list[Path]:
    return sorted(PHOTOS.iterdir())
