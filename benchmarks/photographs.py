"""The photographs that are measured: many different ones, made from the few that ship.

Each is a crop of one of the sources, scaled to 0.3 to 12 megapixels (log-uniform), with a
little grain (enlarged pictures alone would be unnaturally smooth, and quick to decode), saved
as a JPEG of quality 70 to 95. Number *i* is the same on every machine with the same Pillow.
They are kept in ``$PINQ_BENCH_DIR``, by default ``pinq-bench-<uid>`` in the temporary folder.
"""

import hashlib
import io
import math
import os
import random
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.processes import CORES, ROOT, Broken

SEED = 20261123
_SHIPPED = ROOT / "tests" / "data" / "photos"
_ELSEWHERE = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/grass.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/retina.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
_GRAIN = 4.0  # standard deviation, of 255
_GRAIN_SIDE = 512


def folder() -> Path:
    """Where photographs are kept between runs."""
    chosen = os.environ.get("PINQ_BENCH_DIR")
    default = Path(tempfile.gettempdir()) / f"pinq-bench-{os.getuid()}"
    return Path(chosen) if chosen else default


def photographs(count: int, *, megapixels: tuple[float, float] = (0.3, 12.0)) -> Path:
    """A folder of exactly ``count`` photographs, made now where they are not there yet.

    Every file's bytes differ from every other's.
    """
    low, high = megapixels
    pool = folder() / f"photographs-{SEED}-{low:g}-{high:g}"
    pool.mkdir(parents=True, exist_ok=True)
    _make_missing(pool, count, _make_photograph, (low, high))
    return _exactly(pool, count)


def thumbnails(count: int) -> Path:
    """A folder of exactly ``count`` small distinct JPEGs, of about 0.05 megapixels."""
    pool = folder() / f"thumbnails-{SEED}"
    pool.mkdir(parents=True, exist_ok=True)
    _make_missing(pool, count, _make_thumbnail, (0.03, 0.08))
    return _exactly(pool, count)


def _make_missing(pool: Path, count: int, make: object, megapixels: tuple[float, float]) -> None:
    have = set(os.listdir(pool))  # noqa: PTH208 -- names only, and there may be many
    missing = [index for index in range(count) if _name(index) not in have]
    if not missing:
        return
    assert callable(make)
    with ProcessPoolExecutor(CORES) as processes:
        for _ in processes.map(make, repeat(pool), missing, repeat(megapixels), chunksize=8):
            pass


def _exactly(pool: Path, count: int) -> Path:
    """The first ``count`` of a pool as a folder of their own, of hard links."""
    chosen = pool.with_name(f"{pool.name}-first-{count}")
    chosen.mkdir(exist_ok=True)
    for index in range(count):
        with suppress(FileExistsError):
            (chosen / _name(index)).hardlink_to(pool / _name(index))
    files = sorted(chosen.iterdir())
    digests = {hashlib.blake2b(file.read_bytes(), digest_size=16).digest() for file in files}
    if len(files) != count or len(digests) != count:
        raise Broken(f"{chosen} holds {len(files)} files, {len(digests)} different, not {count}")
    return chosen


def _name(index: int) -> str:
    return f"{index:06d}.jpg"


def _make_photograph(pool: Path, index: int, megapixels: tuple[float, float]) -> None:
    draw = random.Random(f"{SEED}-{index}")
    source = draw.choice(_sources())
    low, high = megapixels
    pixels = 1e6 * math.exp(draw.uniform(math.log(low), math.log(high)))
    picture = _crop(source, draw)
    scale = math.sqrt(pixels / (picture.width * picture.height))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    if draw.random() < 0.5:
        picture = ImageOps.mirror(picture)
    _save(_grained(picture, draw), pool / _name(index), quality=draw.randint(70, 95))


def _make_thumbnail(pool: Path, index: int, megapixels: tuple[float, float]) -> None:
    draw = random.Random(f"{SEED}-thumbnail-{index}")
    low, high = megapixels
    picture = _crop(draw.choice(_small_sources()), draw)
    scale = math.sqrt(1e6 * draw.uniform(low, high) / (picture.width * picture.height))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    _save(_grained(picture, draw), pool / _name(index), quality=draw.randint(70, 95))


@cache
def _sources() -> tuple[Image.Image, ...]:
    """The pictures that ship, and more where scikit-image and scikit-learn are installed."""
    files = sorted(_SHIPPED.iterdir())
    for package, path in _ELSEWHERE:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (file := Path(place) / path).is_file():
                files.append(file)
    return tuple(
        ImageOps.exif_transpose(Image.open(io.BytesIO(file.read_bytes()))).convert("RGB")
        for file in files
    )


@cache
def _small_sources() -> tuple[Image.Image, ...]:
    return tuple(ImageOps.contain(source, (400, 400)) for source in _sources())


def _crop(source: Image.Image, draw: random.Random) -> Image.Image:
    """A part of at least half of each side, of an aspect ratio of a camera, roughly."""
    width = round(source.width * draw.uniform(0.5, 1.0))
    height = round(source.height * draw.uniform(0.5, 1.0))
    width, height = min(width, 2 * height), min(height, 2 * width)
    left, top = draw.randint(0, source.width - width), draw.randint(0, source.height - height)
    return source.crop((left, top, left + width, top + height))


@cache
def _grain() -> Image.Image:
    """One tile of grey noise around 128."""
    noise = np.random.default_rng(SEED).normal(128.0, _GRAIN, (_GRAIN_SIDE, _GRAIN_SIDE))
    return Image.fromarray(np.rint(noise).clip(0, 255).astype(np.uint8))


def _grained(picture: Image.Image, draw: random.Random) -> Image.Image:
    """The picture with grain in its luma, laid from another corner each time."""
    left, top = draw.randrange(_GRAIN_SIDE), draw.randrange(_GRAIN_SIDE)
    tile = np.roll(np.asarray(_grain()), (top, left), (0, 1)).astype(np.int16) - 128
    pixels = np.asarray(picture).astype(np.int16)
    rows, columns = -(-picture.height // _GRAIN_SIDE), -(-picture.width // _GRAIN_SIDE)
    laid = np.tile(tile, (rows, columns))[: picture.height, : picture.width, None]
    return Image.fromarray((pixels + laid).clip(0, 255).astype(np.uint8))


def _save(picture: Image.Image, target: Path, quality: int) -> None:
    """Aside and by rename, so that a killed run leaves no half of a photograph."""
    part = target.with_suffix(f".part{os.getpid()}")
    picture.save(part, "JPEG", quality=quality)
    part.replace(target)
