"""Pixels: that each kind of image is decoded right, and each bad one has its class."""

import io
import random
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from pinq.config import MediaSettings
from pinq.errors import FailureClass, MediaError
from pinq.media import guard
from pinq.media.decode import decode
from pinq.media.guard import MAX_SIDE, admit, sniff
from pinq.signals.contract import ImageInput

DATA = Path(__file__).parents[1] / "data"
PHOTOS = sorted((DATA / "photos").iterdir())
LIMITS = MediaSettings()
WEBP = pytest.mark.skipif("WEBP" not in guard._PLUGINS, reason="Pillow built without WebP")
AVIF = pytest.mark.skipif("AVIF" not in guard._PLUGINS, reason="Pillow built without AVIF")
LIBTIFF = pytest.mark.skipif(not features.check("libtiff"), reason="Pillow built without libtiff")


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels_of(data: bytes, height: int, width: int, fit: Any = "stretch") -> torch.Tensor:
    wanted = ImageInput(height, width, fit)
    result = decode(data, [wanted], LIMITS)[wanted]
    assert result.dtype == torch.uint8
    assert result.shape == (3, height, width)
    assert result.is_contiguous()
    return result


def same_size(data: bytes, image: Image.Image) -> torch.Tensor:
    return pixels_of(data, image.height, image.width)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def far(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


def mean_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().mean())


def failure_of(data: bytes, limits: MediaSettings = LIMITS) -> MediaError:
    with pytest.raises(MediaError) as caught:
        decode(data, [ImageInput(32, 32)], limits)
    return caught.value


def photograph(width: int = 96, height: int = 64) -> Image.Image:
    with Image.open(DATA / "photos" / "china.jpg") as image:
        return image.convert("RGB").resize((width, height))


def uniform(colour: Any, mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> Image.Image:
    return Image.new(mode, size, colour)


# --- sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_every_photograph_that_ships_is_decoded_close_to_pillow(path: Path) -> None:
    if path.suffix == ".webp" and "WEBP" not in guard._PLUGINS:
        pytest.skip("Pillow built without WebP")
    with Image.open(path) as image:
        if image.getexif().get(0x0112) == 6:
            image = image.transpose(Image.Transpose.ROTATE_270)
        reference = as_tensor(image.convert("RGB").resize((512, 512), Image.Resampling.BICUBIC))
    # The bound that docs/guide/images.md states for a drafted JPEG is 3 levels.
    assert mean_difference(pixels_of(path.read_bytes(), 512, 512), reference) < 3


def test_one_decoding_serves_several_inputs_each_as_if_alone() -> None:
    data = (DATA / "photos" / "retina.jpg").read_bytes()
    inputs = [
        ImageInput(512, 512),
        ImageInput(224, 224, "crop"),
        ImageInput(64, 64),
        ImageInput(1, 7),
    ]
    together = decode(data, inputs, LIMITS)
    assert list(together) == inputs
    for wanted in inputs:
        assert torch.equal(together[wanted], decode(data, [wanted], LIMITS)[wanted])


def test_no_inputs_give_no_pixels() -> None:
    assert decode(encoded(photograph(), "PNG"), [], LIMITS) == {}


def test_a_drafted_jpeg_stays_within_the_stated_bound_of_a_full_decoding() -> None:
    image = photograph(2000, 1400)
    drafted = pixels_of(encoded(image, "JPEG", quality=85), 512, 512)
    with Image.open(io.BytesIO(encoded(image, "JPEG", quality=85))) as full:
        undrafted = pixels_of(encoded(full.convert("RGB"), "BMP"), 512, 512)
    assert 0 < mean_difference(drafted, undrafted) < 3


def test_an_image_of_the_wanted_size_is_passed_through_unchanged() -> None:
    image = photograph()
    assert torch.equal(same_size(encoded(image, "PNG"), image), as_tensor(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 1), (7, 5)])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP"])
def test_tiny_images_are_enlarged(size: tuple[int, int], format: str) -> None:
    result = pixels_of(encoded(uniform((200, 100, 50), size=size), format), 64, 48)
    assert far(result, torch.tensor((200, 100, 50)).view(3, 1, 1).expand(3, 64, 48)) <= 2


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 60_000)])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_strips_of_extreme_shape_are_decoded(size: tuple[int, int], fit: str, format: str) -> None:
    result = pixels_of(encoded(uniform((9, 99, 199), size=size), format), 128, 128, fit)
    assert far(result, torch.tensor((9, 99, 199)).view(3, 1, 1).expand(3, 128, 128)) <= 2


def test_crop_keeps_the_proportions_and_the_centre() -> None:
    image = uniform((255, 0, 0), size=(300, 100))
    image.paste((0, 0, 255), (100, 0, 200, 100))
    cropped = pixels_of(encoded(image, "PNG"), 50, 50, "crop")
    blue = torch.tensor((0, 0, 255)).view(3, 1, 1).expand(3, 50, 46)
    assert torch.equal(cropped[:, :, 2:48], blue.to(torch.uint8))
    tall = pixels_of(encoded(image.transpose(Image.Transpose.TRANSPOSE), "PNG"), 50, 50, "crop")
    assert far(tall.transpose(1, 2), cropped) <= 1


@pytest.mark.parametrize(("width", "height"), [(640, 427), (427, 640), (500, 333), (224, 224)])
def test_crop_equals_resizing_the_shorter_side_and_cutting(width: int, height: int) -> None:
    image = photograph(width, height)
    scale = 224 / min(width, height)
    full = int(width * scale + 1e-6), int(height * scale + 1e-6)
    left, top = round((full[0] - 224) / 2), round((full[1] - 224) / 2)
    reference = image.resize(full, Image.Resampling.BICUBIC).crop(
        (left, top, left + 224, top + 224)
    )
    assert far(pixels_of(encoded(image, "PNG"), 224, 224, "crop"), as_tensor(reference)) <= 2


def test_a_crop_that_is_not_square_covers_its_box() -> None:
    result = pixels_of(encoded(uniform((10, 20, 30), size=(90, 70)), "PNG"), 33, 121, "crop")
    assert far(result, torch.tensor((10, 20, 30)).view(3, 1, 1).expand(3, 33, 121)) == 0


# --- orientation ------------------------------------------------------------------------

TURNED_BY = {
    1: lambda im: im,
    2: lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda im: im.transpose(Image.Transpose.ROTATE_180),
    4: lambda im: im.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda im: im.transpose(Image.Transpose.TRANSPOSE),
    6: lambda im: im.transpose(Image.Transpose.ROTATE_90),
    7: lambda im: im.transpose(Image.Transpose.TRANSVERSE),
    8: lambda im: im.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize(
    "format",
    ["JPEG", "PNG", "TIFF", pytest.param("WEBP", marks=WEBP), pytest.param("AVIF", marks=AVIF)],
)
@pytest.mark.parametrize("orientation", TURNED_BY)
def test_every_orientation_is_turned_upright_once(orientation: int, format: str) -> None:
    upright = photograph(96, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"exif": exif}
    if format == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    elif format == "WEBP":
        options |= {"lossless": True}
    elif format == "AVIF":
        options |= {"quality": 100}
    data = encoded(TURNED_BY[orientation](upright), format, **options)
    lossy = format in ("JPEG", "AVIF")
    assert mean_difference(same_size(data, upright), as_tensor(upright)) <= (4 if lossy else 0)


def test_a_drafted_jpeg_is_turned_too() -> None:
    upright = photograph(1600, 1200)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    straight = encoded(upright, "JPEG", quality=95)
    assert mean_difference(pixels_of(turned, 300, 500), pixels_of(straight, 300, 500)) < 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_costs_nothing_but_the_orientation() -> None:
    image = photograph()
    data = encoded(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert mean_difference(same_size(data, image), as_tensor(image)) < 8


# --- modes ------------------------------------------------------------------------------


def test_transparency_lies_on_white_before_resizing() -> None:
    for mode, clear, half in (
        ("RGBA", (255, 0, 0, 0), (0, 0, 0, 128)),
        ("LA", (0, 0), (0, 128)),
    ):
        assert int(pixels_of(encoded(uniform(clear, mode), "PNG"), 8, 8).min()) == 255
        assert (
            far(pixels_of(encoded(uniform(half, mode), "PNG"), 8, 8), torch.full((3, 8, 8), 127))
            <= 1
        )


def test_a_transparent_palette_colour_and_a_transparent_grey_are_white() -> None:
    palette = uniform(1, "P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    for data in (
        encoded(palette, "PNG", transparency=1),
        encoded(palette, "PNG", transparency=b"\xff\x00"),
        encoded(palette, "GIF", transparency=1),
        encoded(uniform(7, "L"), "PNG", transparency=7),
        encoded(uniform((1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    ):
        assert int(pixels_of(data, 8, 8).min()) == 255


def test_a_palette_with_alpha_lies_on_white() -> None:
    image = uniform(1, "P")
    image.putpalette([0, 0, 0, 40, 80, 120])
    alpha = uniform(255, "L")
    alpha.paste(0, (0, 0, 10, 12))
    image = image.convert("PA")
    image.putalpha(alpha)
    result = same_size(encoded(image, "TIFF"), image)
    assert int(result[:, :, :10].min()) == 255
    assert result[:, 0, 15].tolist() == [40, 80, 120]


def test_opaque_alpha_changes_nothing() -> None:
    image = photograph()
    assert torch.equal(same_size(encoded(image.convert("RGBA"), "PNG"), image), as_tensor(image))


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF"])
def test_a_palette_gives_its_colours(format: str) -> None:
    image = photograph().quantize(64)
    assert torch.equal(same_size(encoded(image, format), image), as_tensor(image))


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF", "JPEG"])
def test_grey_fills_all_three_channels(format: str) -> None:
    image = photograph().convert("L")
    result = same_size(encoded(image, format), image)
    assert torch.equal(result[0], result[1]) and torch.equal(result[1], result[2])
    assert mean_difference(result, as_tensor(image)) <= (4 if format == "JPEG" else 0)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_one_bit_is_black_and_white(format: str) -> None:
    image = photograph().convert("1")
    result = same_size(encoded(image, format), image)
    assert set(result.unique().tolist()) == {0, 255}
    assert torch.equal(result, as_tensor(image))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_converted(format: str) -> None:
    image = photograph().convert("CMYK")
    options = {"quality": 95} if format == "JPEG" else {}
    result = same_size(encoded(image, format, **options), image)
    assert mean_difference(result, as_tensor(image)) < 4


@pytest.mark.parametrize("transform", [0, 2])
def test_adobes_inverted_cmyk_and_ycck_are_not_negatives(transform: int) -> None:
    # Ink values 0, 60, 120, 30 and what Adobe stores for them: their complement.
    ink = (0, 60, 120, 30)
    red, green, blue = (255 - ink[0], 255 - ink[1], 255 - ink[2])
    data = bytearray(encoded(uniform(ink, "CMYK", (64, 64)), "JPEG", quality=100))
    if b"Adobe" not in data:
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
        data[2:2] = adobe
    else:
        data[data.index(b"Adobe") + 11] = transform
    result = pixels_of(bytes(data), 64, 64)
    with Image.open(io.BytesIO(bytes(data))) as image:
        reference = as_tensor(image.convert("RGB"))
    assert far(result, reference) <= 2
    if transform == 0:
        expected = torch.tensor([value * (255 - ink[3]) / 255 for value in (red, green, blue)])
        assert (result.float().mean(dim=(1, 2)) - expected).abs().max() < 4


def test_sixteen_bit_grey_is_scaled_to_eight() -> None:
    ramp = np.linspace(0, 65535, 256 * 16).round().astype(np.uint16).reshape(16, 256)
    expected = torch.from_numpy(np.rint(ramp / 257.0).astype(np.uint8))
    image = Image.fromarray(ramp)
    for data in (encoded(image, "PNG"), encoded(image, "TIFF")):
        assert torch.equal(pixels_of(data, 16, 256)[1], expected)


def test_big_endian_sixteen_bit_tiff_is_read_in_its_order() -> None:
    ramp = np.linspace(0, 65535, 4096).astype(">u2").reshape(16, 256)
    data = _tiff(ramp.tobytes(), 256, 16, bits=16, order=">")
    expected = torch.from_numpy(np.rint(ramp.astype(np.float64) / 257).astype(np.uint8))
    assert torch.equal(pixels_of(data, 16, 256)[0], expected)


def test_sixteen_bit_tiff_where_zero_is_white_is_inverted() -> None:
    data = _tiff(np.full((4, 4), 65535, "<u2").tobytes(), 4, 4, bits=16, photometric=0)
    assert int(pixels_of(data, 4, 4).max()) == 0


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    samples = np.tile(np.array([0x1234, 0x80FF, 0xFFFF], "<u2"), (4, 4, 1))
    data = _tiff(samples.tobytes(), 4, 4, bits=16, samples=3, photometric=2)
    assert pixels_of(data, 4, 4)[:, 0, 0].tolist() == [0x12, 0x80, 0xFF]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0.0, 0.5, 1.0, -3.0], [0, 128, 255, 0]),
        ([0.0, 128.0, 255.0, float("nan")], [0, 128, 255, 0]),
        ([0.0, 32768.0, 65535.0, float("inf")], [0, 128, 255, 255]),
        ([0.0, 1e30, float("-inf"), 5.0], [0, 255, 0, 0]),
    ],
)
def test_float_samples_are_clipped_to_the_smallest_usual_range(
    samples: list[float], expected: list[int]
) -> None:
    image = Image.fromarray(np.array([samples], np.float32))
    assert pixels_of(encoded(image, "TIFF"), 1, 4)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0, 128, 255, -9], [0, 128, 255, 0]),
        ([0, 257, 65535, 514], [0, 1, 255, 2]),
        ([0, 2**31 - 1, 2**30, 7], [0, 127, 64, 0]),
    ],
)
def test_whole_samples_of_32_bits_are_scaled_by_the_smallest_usual_range(
    samples: list[int], expected: list[int]
) -> None:
    image = Image.fromarray(np.array([samples], np.int32))
    found = pixels_of(encoded(image, "TIFF"), 1, 4)[0, 0].tolist()
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 1


@pytest.mark.parametrize(
    ("lab", "rgb"),
    [
        ((255, 0, 0), (255, 255, 255)),
        ((0, 0, 0), (0, 0, 0)),
        ((137, 0, 0), (128, 128, 128)),
        ((138, 81, 70), (255, 0, 0)),  # red: L 54.29, a 80.81, b 69.89 under D50
        ((75, 68, 144), (0, 0, 255)),  # blue: L 29.57, a 68.30, b -112.03
    ],
)
def test_cielab_becomes_srgb(lab: tuple[int, int, int], rgb: tuple[int, int, int]) -> None:
    data = _tiff(bytes(lab) * 16, 4, 4, bits=8, samples=3, photometric=8)
    found = pixels_of(data, 4, 4)[:, 0, 0].tolist()
    assert max(abs(a - b) for a, b in zip(found, rgb, strict=True)) <= 3


def _tiff(
    raw: bytes,
    width: int,
    height: int,
    *,
    bits: int,
    samples: int = 1,
    photometric: int = 1,
    order: str = "<",
) -> bytes:
    """An uncompressed TIFF of one strip, written by hand."""
    endian: Any = "little" if order == "<" else "big"
    entries = 10
    after = 8 + 2 + entries * 12 + 4
    tags = [
        (256, width), (257, height), (258, bits), (259, 1), (262, photometric),
        (273, after + 2 * samples), (277, samples), (278, height), (279, len(raw)), (284, 1),
    ]  # fmt: skip
    out = (b"II*\0" if order == "<" else b"MM\0*") + (8).to_bytes(4, endian)
    out += entries.to_bytes(2, endian)
    for tag, value in tags:
        if tag == 258:
            kind, count = 3, samples
            field = (
                bits.to_bytes(2, endian) + b"\0\0" if samples == 1 else after.to_bytes(4, endian)
            )
        else:
            kind, count, field = 4, 1, value.to_bytes(4, endian)
        out += tag.to_bytes(2, endian) + kind.to_bytes(2, endian)
        out += count.to_bytes(4, endian) + field
    return out + bytes(4) + bits.to_bytes(2, endian) * samples + raw


# --- formats ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "options", "bound"),
    [
        ("JPEG", {"quality": 95}, 4),
        ("JPEG", {"quality": 95, "progressive": True}, 4),
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        pytest.param("TIFF", {"compression": "tiff_lzw"}, 0, marks=LIBTIFF),
        pytest.param("TIFF", {"compression": "tiff_deflate"}, 0, marks=LIBTIFF),
        pytest.param("WEBP", {"lossless": True}, 0, marks=WEBP),
        pytest.param("WEBP", {"quality": 95}, 4, marks=WEBP),
        pytest.param("AVIF", {"quality": 95}, 4, marks=AVIF),
    ],
)
def test_every_admitted_format_is_known_by_its_bytes_and_decoded(
    format: str, options: dict[str, Any], bound: float
) -> None:
    image = photograph()
    data = encoded(image, format, **options)
    assert sniff(data) == format
    assert mean_difference(same_size(data, image), as_tensor(image)) <= bound


@pytest.mark.parametrize(
    "format", ["GIF", "PNG", pytest.param("WEBP", marks=WEBP), pytest.param("AVIF", marks=AVIF)]
)
def test_an_animation_gives_its_first_frame(format: str) -> None:
    first, second = uniform((200, 0, 0)), uniform((0, 0, 200))
    data = encoded(first, format, save_all=True, append_images=[second], duration=50)
    assert far(same_size(data, first), as_tensor(first)) <= 4


def test_a_jpeg_that_holds_more_pictures_gives_the_first() -> None:
    first, second = photograph(), uniform((0, 0, 200), size=(96, 64))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert mean_difference(same_size(data, first), as_tensor(first)) < 4


# --- what is not admitted ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\1", "Photoshop"),
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns=", "SVG"),
    ],
)
def test_a_known_format_that_is_not_admitted_is_refused_by_name(data: bytes, name: str) -> None:
    error = failure_of(data + bytes(64))
    assert error.failure_class is FailureClass.REFUSED
    assert name in str(error) and "media.formats" in str(error)


def test_settings_can_admit_fewer_formats() -> None:
    error = failure_of(encoded(photograph(), "PNG"), MediaSettings(formats=("JPEG",)))
    assert error.failure_class is FailureClass.REFUSED


def test_a_format_that_pillow_lacks_is_refused_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(guard._PLUGINS, "AVIF", raising=False)
    error = failure_of(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(64))
    assert error.failure_class is FailureClass.REFUSED
    assert "built without it" in str(error)


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    head = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + body
    tail = b"\0\0\0\x10IDAT" + bytes(20)
    return head + zlib.crc32(body).to_bytes(4, "big") + tail


def _webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + size + bytes(40)


@pytest.mark.parametrize(
    "data",
    [_png_header(20_000, 20_000), pytest.param(_webp_header(16_000, 16_000), marks=WEBP)],
)
def test_a_decompression_bomb_is_refused_from_its_header(data: bytes) -> None:
    error = failure_of(data)
    assert error.failure_class is FailureClass.REFUSED
    assert "media.max_pixels" in str(error)


def test_the_pixel_limit_is_the_settings_and_pillows_own_stays_untouched() -> None:
    data = encoded(uniform(0, "1", (10_000, 9_900)), "PNG")
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow would warn above 89 megapixels
        image = admit(data, LIMITS)
        assert image.size == (10_000, 9_900)
        image.close()
    assert before == Image.MAX_IMAGE_PIXELS
    small = encoded(photograph(), "PNG")
    assert failure_of(small, MediaSettings(max_pixels=96 * 64 - 1)).failure_class is (
        FailureClass.REFUSED
    )
    assert decode(small, [ImageInput(8, 8)], MediaSettings(max_pixels=96 * 64))


def test_a_side_beyond_all_reason_is_refused() -> None:
    error = failure_of(_png_header(MAX_SIDE + 1, 1))
    assert error.failure_class is FailureClass.REFUSED
    assert "a side" in str(error)


# --- damage -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["truncated.jpg", "empty.jpg", "text.jpg"])
def test_the_bad_files_that_ship_are_undecodable(name: str) -> None:
    error = failure_of((DATA / "bad" / name).read_bytes())
    assert error.failure_class is FailureClass.UNDECODABLE
    assert str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "format",
    [
        "JPEG",
        "PNG",
        "GIF",
        "BMP",
        "TIFF",
        pytest.param("WEBP", marks=WEBP),
        pytest.param("AVIF", marks=AVIF),
    ],
)
def test_a_truncated_file_is_undecodable(format: str) -> None:
    data = encoded(photograph(), format)
    for part in (0.1, 0.5, 0.9):
        error = failure_of(data[: int(len(data) * part)])
        assert error.failure_class is FailureClass.UNDECODABLE


@pytest.mark.parametrize("raised", [MemoryError(), OSError("out of memory error")])
def test_no_memory_is_no_fault_of_the_image(
    monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def fail(_: object) -> None:
        raise raised

    monkeypatch.setattr(guard._PLUGINS["PNG"], "load", fail)
    error = failure_of(encoded(photograph(), "PNG"))
    assert error.failure_class is FailureClass.OUT_OF_MEMORY
    assert not error.failure_class.permanent


def test_no_memory_to_resize_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(torch.nn.functional, "interpolate", fail)
    error = failure_of(encoded(photograph(), "PNG"))
    assert error.failure_class is FailureClass.OUT_OF_MEMORY


def _seeds() -> dict[str, bytes]:
    image = photograph(60, 44)
    made: list[tuple[str, Callable[[], bytes]]] = [
        ("jpeg", lambda: encoded(image, "JPEG")),
        ("progressive", lambda: encoded(image, "JPEG", progressive=True)),
        ("cmyk", lambda: encoded(image.convert("CMYK"), "JPEG")),
        ("png", lambda: encoded(image, "PNG")),
        ("palette", lambda: encoded(image.quantize(16), "PNG", transparency=3)),
        ("gif", lambda: encoded(image.quantize(64), "GIF")),
        ("bmp", lambda: encoded(image, "BMP")),
        ("tiff", lambda: encoded(image, "TIFF")),
        ("float", lambda: encoded(image.convert("F"), "TIFF")),
        ("webp", lambda: encoded(image, "WEBP")),
        ("avif", lambda: encoded(image, "AVIF")),
    ]
    absent = {name.lower() for name in LIMITS.formats if name not in guard._PLUGINS}
    return {name: make() for name, make in made if name not in absent}


def _mutated(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice((1, 2, 5, 20))):
        # Half of the damage goes to the header, where it does most.
        reach = len(changed) if generator.random() < 0.5 else min(64, len(changed))
        at, kind = generator.randrange(reach), generator.random()
        if kind < 0.7:
            changed[at] = generator.choice((0, 1, 127, 128, 255, generator.randrange(256)))
        elif kind < 0.8:
            del changed[at : at + generator.randrange(1, 30)]
        elif kind < 0.9:
            changed[at:at] = generator.randbytes(8)
        else:
            del changed[max(at, 1) :]
        changed = changed or bytearray(b"x")
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_pixels_or_a_classified_error_and_nothing_else() -> None:
    inputs = [ImageInput(32, 32), ImageInput(16, 24, "crop")]
    limits = MediaSettings(max_pixels=4_000_000)
    possible = {FailureClass.UNDECODABLE, FailureClass.REFUSED, FailureClass.OUT_OF_MEMORY}
    for name, data in _seeds().items():
        generator = random.Random(f"pinq {name}")
        for case in range(300):
            try:
                result = decode(_mutated(data, generator), inputs, limits)
            except MediaError as error:
                assert error.failure_class in possible, (name, case)
            except Exception as error:  # noqa: BLE001  the very thing looked for
                pytest.fail(f"{name}, case {case}: {error!r}")
            else:
                assert [tuple(pixels.shape) for pixels in result.values()] == [
                    (3, 32, 32),
                    (3, 16, 24),
                ]


def test_threads_decode_the_same_pixels_as_one() -> None:
    files = [path.read_bytes() for path in PHOTOS if path.suffix == ".jpg"]
    alone = [pixels_of(data, 128, 128) for data in files]
    barrier = threading.Barrier(4)

    def work() -> list[torch.Tensor]:
        barrier.wait()
        return [pixels_of(data, 128, 128) for data in files]

    with ThreadPoolExecutor(4) as pool:
        for answers in [job.result() for job in [pool.submit(work) for _ in range(4)]]:
            assert all(torch.equal(a, b) for a, b in zip(answers, alone, strict=True))


def test_decoding_raises_no_warning_on_good_images() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in PHOTOS:
            if path.suffix != ".webp":
                pixels_of(path.read_bytes(), 64, 64)
