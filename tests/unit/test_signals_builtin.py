"""The built-in signals: equal to their references, and blind to their batch-mates."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pdqhash
import pytest
import skimage
import sklearn.datasets
import torch
from numpy.typing import NDArray
from PIL import Image

from pinq.config import BUILTIN_SIGNALS, load
from pinq.signals import pdq
from pinq.signals.color import Color
from pinq.signals.contract import Computed, Signal
from pinq.signals.pdq import Pdq
from pinq.signals.quality import Quality
from pinq.signals.registry import signals_for

Pixels = NDArray[np.uint8]  # [512, 512, 3]

CROPS = 200
BUILTIN = (Color, Pdq, Quality)


@cache
def photographs() -> list[Image.Image]:
    folder = Path(skimage.__file__).parent / "data"
    names = (
        "astronaut.png brick.png camera.png chelsea.png clock_motion.png coffee.png coins.png "
        "color.png grass.png gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png "
        "page.png retina.jpg rocket.jpg text.png"
    )
    shipped = [Image.open(folder / name).convert("RGB") for name in names.split()]
    return shipped + [Image.fromarray(i) for i in sklearn.datasets.load_sample_images().images]


@cache
def crops() -> list[Pixels]:
    random = np.random.default_rng(20240229)
    found = []
    for index in range(CROPS):
        photograph = photographs()[index % len(photographs())]
        width, height = (max(32, int(s * random.uniform(0.25, 1))) for s in photograph.size)
        left = int(random.integers(0, photograph.width - width + 1))
        top = int(random.integers(0, photograph.height - height + 1))
        cut = photograph.crop((left, top, left + width, top + height))
        how = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)
        found.append(np.asarray(cut.resize((512, 512), how[index % 3])))
    return found


def synthetic() -> dict[str, Pixels]:
    random = np.random.default_rng(5)
    y, x = np.mgrid[:512, :512]

    def gray(plane: NDArray[np.generic]) -> Pixels:
        return np.repeat(plane.astype(np.uint8)[:, :, None], 3, axis=2)

    def flat(*color: int) -> Pixels:
        return np.full((512, 512, 3), color, np.uint8)

    images = {
        "black": flat(0, 0, 0),
        "white": flat(255, 255, 255),
        "gray": flat(128, 128, 128),
        "flat": flat(100, 50, 20),
        "flat dark": flat(1, 2, 3),
        "ramp across": gray(x // 2),
        "ramp down": gray(y // 2),
        "ramp aslant": gray((x + y) // 4),
        "ramps": np.stack([x // 2, y // 2, (x + y) // 4], 2).astype(np.uint8),
        "mirrored": gray(np.abs(x - 255.5)),
        "disc": gray(255 * (((x - 255.5) ** 2 + (y - 255.5) ** 2) < 150**2)),
        "bright noise": random.integers(200, 256, (512, 512, 3), dtype=np.uint8),
        "one pixel": flat(0, 0, 0),
    }
    images["one pixel"][300, 200] = 255
    for size in (1, 2, 4, 8, 16, 51, 256):
        images[f"chess {size}"] = gray(255 * ((x // size + y // size) % 2))
    for index in range(5):
        images[f"noise {index}"] = random.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    for index in range(8):
        slopes = random.uniform(-0.5, 0.5, (3, 2))
        planes = [128 + p * (x - 256) + q * (y - 256) for p, q in slopes]
        images[f"ramp {index}"] = np.clip(np.stack(planes, 2), 0, 255).astype(np.uint8)
    return images


def batch_of(images: list[Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def computed(kind: type[Signal], images: torch.Tensor) -> Computed:
    signal = kind()
    signal.load(torch.device("cpu"))
    with torch.inference_mode():
        return signal.compute(images)


def rendered(kind: type[Signal], image: Pixels) -> dict[str, object]:
    answer = computed(kind, batch_of([image]))
    meta = {key: column[0] for key, column in answer.meta.items()}
    return kind().render(answer.values.numpy().tobytes(), meta)


def differing(images: list[Pixels]) -> list[int]:
    """The images whose hash or quality is not the reference's."""
    answer = computed(Pdq, batch_of(images))
    wrong = []
    for index, image in enumerate(images):
        bits, quality = pdqhash.compute(np.ascontiguousarray(image))
        same = np.packbits(bits).tobytes() == answer.values[index].numpy().tobytes()
        if not same or quality != answer.meta["quality"][index]:
            wrong.append(index)
    return wrong


def test_pdq_of_photographs_is_the_references_hash_and_quality() -> None:
    assert differing(crops()) == []


def test_pdq_of_synthetic_images_is_the_references_even_where_all_coefficients_tie() -> None:
    images = synthetic()
    assert [list(images)[index] for index in differing(list(images.values()))] == []


def test_the_exact_replay_of_the_reference_agrees_with_it_on_any_image() -> None:
    images = [*crops()[:12], *list(synthetic().values())[:12]]
    bits, quality = pdq.replay(batch_of(images))
    for index, image in enumerate(images):
        expected, expected_quality = pdqhash.compute(np.ascontiguousarray(image))
        assert bits[index].numpy().astype(int).tolist() == expected[::-1].tolist()
        assert quality[index] == expected_quality


def test_the_references_rounding_errors_stay_within_the_bounds_that_pdq_allows_for() -> None:
    order = np.arange(16)
    bound = pdq.COEFFICIENT_ERROR / (1 + np.minimum(order[:, None], order))
    signal = Pdq()
    signal.load(torch.device("cpu"))
    images = [*crops()[:60], *synthetic().values()]
    exact = (signal._dct @ signal._cells(batch_of(images)) @ signal._dct.T).numpy()
    for index, image in enumerate(images):
        floats, _ = pdqhash.compute_float(np.ascontiguousarray(image))
        assert (np.abs(floats[::-1].reshape(16, 16) - exact[index]) <= bound).all()


def test_few_photographs_need_the_slow_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = []
    replay = pdq.replay

    def counted(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        replayed.append(len(images))
        return replay(images)

    monkeypatch.setattr(pdq, "replay", counted)
    computed(Pdq, batch_of(crops()))
    assert sum(replayed) <= 0.1 * CROPS


def test_pdq_renders_as_64_hex_digits_in_the_references_order() -> None:
    value = rendered(Pdq, crops()[0])
    bits, quality = pdqhash.compute(crops()[0])
    assert value == {"hash": np.packbits(bits).tobytes().hex(), "quality": quality}
    assert len(str(value["hash"])) == 64


@pytest.mark.parametrize("kind", BUILTIN)
def test_an_image_has_the_same_value_alone_as_in_any_batch(kind: type[Signal]) -> None:
    images = batch_of([*crops()[:20], *list(synthetic().values())[:9]])
    whole = computed(kind, images)
    for size in (1, 7, 16):
        parts = [computed(kind, images[i : i + size]) for i in range(0, len(images), size)]
        assert torch.equal(torch.cat([part.values for part in parts]), whole.values)
        for key, column in whole.meta.items():
            assert [value for part in parts for value in part.meta[key]] == column


@pytest.mark.parametrize("kind", BUILTIN)
def test_a_value_has_the_dtype_and_shape_that_the_signal_names(kind: type[Signal]) -> None:
    answer = computed(kind, batch_of(crops()[:3]))
    assert answer.values.shape == (3, *kind.shape)
    assert str(answer.values.dtype) == f"torch.{kind.dtype}"


def test_shares_of_colors_fall_and_sum_to_one() -> None:
    values = computed(Color, batch_of(crops()[:40])).values
    shares = values[:, :, 0]
    assert torch.equal(shares, shares.sort(dim=1, descending=True).values)
    assert torch.allclose(shares.sum(1), torch.ones(40), atol=1e-6)
    assert values.isfinite().all()


@pytest.mark.parametrize(
    "color", [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (52, 120, 200)]
)
def test_a_flat_image_has_one_color_which_is_its_own(color: tuple[int, int, int]) -> None:
    image = np.full((512, 512, 3), color, np.uint8)
    found = rendered(Color, image)["colors"]
    assert isinstance(found, list)
    assert [each["share"] for each in found] == [1.0]
    shown = bytes.fromhex(found[0]["hex"][1:])
    assert max(abs(a - b) for a, b in zip(shown, color, strict=True)) <= 1


def test_an_image_of_three_colors_has_those_three_with_their_areas() -> None:
    image = np.zeros((512, 512, 3), np.uint8)
    image[:, :128] = (200, 30, 30)
    image[:, 128:] = (20, 60, 160)
    image[256:, 256:] = (250, 240, 90)
    found = rendered(Color, image)["colors"]
    assert isinstance(found, list)
    assert [color["share"] for color in found] == [0.5, 0.25, 0.25]
    shown = {color["hex"] for color in found}
    expected = ("c81e1e", "143ca0", "faf05a")
    for digits in expected:
        nearest = min(
            max(
                abs(a - b) for a, b in zip(bytes.fromhex(h[1:]), bytes.fromhex(digits), strict=True)
            )
            for h in shown
        )
        assert nearest <= 1


def test_oklab_is_ottossons() -> None:
    # The primaries in OKLab, from https://bottosson.github.io/posts/oklab/ and CSS Color 4.
    expected = {
        (255, 0, 0): (0.62796, 0.22486, 0.12585),
        (0, 0, 255): (0.45201, -0.03246, -0.31153),
    }
    for color, lab in expected.items():
        image = np.full((512, 512, 3), color, np.uint8)
        values = computed(Color, batch_of([image])).values[0, 0]
        assert values[1:].numpy() == pytest.approx(lab, abs=5e-4)


def test_colors_explain_a_photograph_about_as_well_as_a_long_k_means() -> None:
    from sklearn.cluster import KMeans

    signal = Color()
    signal.load(torch.device("cpu"))
    for image in crops()[:8]:
        pixels = signal._pixels(batch_of([image]))[0].T.numpy() / 2048
        values = signal.compute(batch_of([image])).values[0]
        centres = values[values[:, 0] > 0][:, 1:].numpy()
        apart = ((pixels[:, None] - centres[None]) ** 2).sum(2).min(1).sum()
        best = KMeans(5, n_init=4, random_state=0).fit(pixels).inertia_
        assert apart <= 1.25 * best + 1e-6


def test_quality_is_the_textbook_formulas_on_luma() -> None:
    values = computed(Quality, batch_of(crops()[:10])).values.numpy()
    for index, image in enumerate(crops()[:10]):
        luma = image @ np.array([0.299, 0.587, 0.114])
        middle = luma[1:-1, 1:-1]
        around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
        expected = ((around - 4 * middle).var(), luma.mean() / 255, luma.std() / 255)
        assert values[index] == pytest.approx(expected, rel=1e-6)


def test_quality_of_blank_and_half_black_images_is_at_its_bounds() -> None:
    half = np.zeros((512, 512, 3), np.uint8)
    half[:, 256:] = 255
    blank = {"sharpness": 0.0, "exposure": 0.0, "contrast": 0.0}
    assert rendered(Quality, np.zeros((512, 512, 3), np.uint8)) == blank
    assert rendered(Quality, np.full((512, 512, 3), 255, np.uint8)) == {**blank, "exposure": 1.0}
    value = rendered(Quality, half)
    assert (value["exposure"], value["contrast"]) == (0.5, 0.5)


def test_a_blurred_photograph_is_less_sharp() -> None:
    sharp = photographs()[0].resize((512, 512))
    soft = sharp.resize((128, 128)).resize((512, 512))
    values = computed(Quality, batch_of([np.asarray(sharp), np.asarray(soft)])).values
    assert values[1, 0] < values[0, 0] / 4


def test_the_built_in_signals_share_one_input_so_that_an_image_is_resized_once() -> None:
    assert len({signal.input for signal in signals_for(load(), BUILTIN_SIGNALS)}) == 1


def test_names_versions_and_rendering_need_neither_torch_nor_numpy() -> None:
    program = """
import struct, sys
sys.modules.update(torch=None, numpy=None)
from pinq.config import BUILTIN_SIGNALS, load
from pinq.signals.registry import render, signals_for
from pinq.store.contract import SignalValue
for signal in signals_for(load(), BUILTIN_SIGNALS):
    size = 1 if signal.dtype == "uint8" else 4
    for side in signal.shape:
        size *= side
    value = SignalValue(signal.dtype, signal.shape, bytes(size), 0, {"quality": 7})
    print(signal.name, signal.version, sorted(render(load(), signal.name, 1, value)))
"""
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert shown.stdout.splitlines() == [
        "color 1 ['colors']",
        "pdq 1 ['hash', 'quality']",
        "quality 1 ['contrast', 'exposure', 'sharpness']",
    ], shown.stderr


def test_the_rows_of_the_dct_matrix_are_orthonormal() -> None:
    rows = np.array(pdq.dct_rows())
    assert np.allclose(rows @ rows.T, np.eye(16), atol=1e-6)
