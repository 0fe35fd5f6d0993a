"""Bytes → pixels, once for all signals of a pipeline.

An image is decoded once, as small as the largest input allows, and every input
is resized from that decoded image (never from another input's result) by
torch's uint8 bicubic kernel with antialiasing.

**The fast path.** A JPEG is *drafted*: libjpeg decodes it at 1/2, 1/4 or 1/8 of
its size, the smallest that is still at least the largest input along both
sides, and at least ``DRAFT_FLOOR``. docs/guide/images.md states the bound of
what that changes.

Almost all of the time is spent with the GIL released: libjpeg decodes the file
in one call, and torch resizes what lies in Pillow's memory, without a copy.

Colour profiles are not applied: pixels are taken as sRGB.
"""

import ctypes
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, JpegImagePlugin

from pinq.config import MediaSettings
from pinq.errors import FailureClass, MediaError
from pinq.media.guard import admit, translated
from pinq.signals.contract import ImageInput

DRAFT_FLOOR = 512
"""Pixels along each side that a draft keeps. What a batch lacks in the store decides
which inputs are decoded together; with this floor, an input of up to this size gets
the same pixels whatever its companions."""


def decode(
    data: bytes, inputs: Collection[ImageInput], limits: MediaSettings
) -> dict[ImageInput, torch.Tensor]:
    """Decode one image for every input.

    Orientation is applied, transparency lies on white, and an animation gives
    its first frame.

    Args:
        data: an encoded image of a format that ``limits`` admits.
        inputs: the sizes wanted, in pixels.
        limits: what is admitted.

    Returns:
        For each input a contiguous uint8 tensor ``[3, height, width]``, RGB, on the CPU.

    Raises:
        MediaError: ``REFUSED`` for a format or size that is not admitted,
            ``UNDECODABLE`` for damaged bytes, ``OUT_OF_MEMORY``.
    """
    if not inputs:
        return {}
    image = admit(data, limits)
    with translated(f"damaged {image.format} image"):
        pixels = _pixels(_upright(image, inputs, len(data)))
    del image  # as large as the pixels
    try:
        return {wanted: _fitted(pixels, wanted) for wanted in inputs}
    except RuntimeError as error:  # torch's word for a failed allocation
        if "allocate memory" not in str(error):
            raise
        raise MediaError(FailureClass.OUT_OF_MEMORY, "no memory to resize the image") from error


# --- decoding ---------------------------------------------------------------------------


def _upright(
    image: ImageFile.ImageFile, inputs: Collection[ImageInput], size_bytes: int
) -> Image.Image:
    """Decode; turn as EXIF says (a TIFF was already turned by Pillow)."""
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        turn = _turn(image)
        height = max(DRAFT_FLOOR, *(wanted.height for wanted in inputs))
        width = max(DRAFT_FLOOR, *(wanted.width for wanted in inputs))
        image.draft("RGB", (height, width) if turn in _SWAPPING else (width, height))
        # All bytes in one call to libjpeg: the GIL is released once, not once per 64 KiB.
        image.decodermaxblock = max(size_bytes, image.decodermaxblock)
        image.load()
    else:
        image.load()
        turn = _turn(image)  # a PNG may say it after its pixels
    return image if turn is None else image.transpose(turn)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))
_ORIENTATION_TAG = 0x0112


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001  a damaged EXIF block raises anything; the pixels are fine
        return None


# --- Pillow's modes → RGB or grey -------------------------------------------------------


def _pixels(image: Image.Image) -> torch.Tensor:
    """A decoded image as uint8 ``[1, C, H, W]``, its memory in the order H, W, C.

    C is 1 for grey and 4 for colour: Pillow's own four bytes a pixel, the fourth
    to be ignored. To copy them as they are is four times faster than to pack
    three, and torch's kernel takes both.
    """
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        grey = _eight_bits(image)
        return torch.from_numpy(grey)[None, None]
    if mode == "LAB":
        return _rgb_of_lab(np.asarray(image))
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = _over_white(image)
    elif mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "RGB"):
        image = image.convert("RGB")
    channels = 1 if image.mode == "L" else 4
    flat = torch.from_numpy(np.asarray(_Memory(image, "L" if channels == 1 else "RGBX")))
    # With the batch's stride in its place, or torch's kernel does not see the order.
    return flat.view(1, image.height, image.width, channels).permute(0, 3, 1, 2)


class _Memory:
    """An image's bytes as an array that nobody may write to.

    Where Pillow holds the image in one block (up to 16 MiB) that is its own memory,
    which the Arrow capsule keeps alive; otherwise a copy. Not marked read-only, since
    torch warns about that.
    """

    def __init__(self, image: Image.Image, layout: str) -> None:
        size = image.width * image.height * len(layout)
        self.owner: object
        try:
            _, self.owner = image.__arrow_c_array__()
            address = _address_of(self.owner)
        except ValueError:  # several blocks
            self.owner = raw = image.tobytes("raw", layout)
            address = np.frombuffer(raw, np.uint8).__array_interface__["data"][0]
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (size,),
            "data": (address, False),
        }


class _ArrowArray(ctypes.Structure):
    """https://arrow.apache.org/docs/format/CDataInterface.html#structure-definitions"""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _address_of(capsule: object) -> int:
    """Where the values of an ``arrow_array`` capsule lie.

    Pillow hands out grey as an array of bytes, colour as a list of four of them each.
    """
    array = _ArrowArray.from_address(_pointer_of(capsule, b"arrow_array"))
    if array.n_children:
        array = array.children[0].contents
    address = array.buffers[1]
    assert array.offset == 0 and address is not None
    return int(address)


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image)
    return white


def _eight_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Grey samples of 12, 16 or 32 bits, or floats, as uint8 ``[H, W]``.

    12 and 16 bits are scaled by their range. 32-bit samples and floats tell no
    range, so the smallest of 1 (floats only), 255, 65535 and 2³²-1 that holds
    the brightest sample is taken; what is below zero or no number is black.
    """
    samples = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        brightest = 4095.0 if tags.get(258) == (12,) else 65535.0
    elif image.format == "PNG":
        brightest = 65535.0
    else:
        samples = np.nan_to_num(samples, nan=0.0, posinf=np.inf, neginf=0.0)
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 4294967295.0)
        highest = samples.max(initial=0, where=np.isfinite(samples))
        brightest = next((top for top in ranges if highest <= top), ranges[-1])
    scaled = np.clip(samples.astype(np.float32) * (255.0 / brightest), 0, 255)
    grey: npt.NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    white_is_zero = image.mode in ("I;16", "F") and tags.get(262) == 0
    return ~grey if white_is_zero else grey


def _rgb_of_lab(samples: npt.NDArray[np.uint8]) -> torch.Tensor:
    """CIELAB as a TIFF holds it (L 0 to 255, a and b signed, white D50) as sRGB.

    The matrix is Lindbloom's for XYZ (D50, adapted by Bradford) to linear sRGB.
    """
    lab = torch.from_numpy(samples.copy())
    lightness = lab[..., 0].float() * (100 / 255)
    a, b = lab[..., 1].view(torch.int8).float(), lab[..., 2].view(torch.int8).float()
    fy = (lightness + 16) / 116
    f = torch.stack((fy + a / 500, fy, fy - b / 200), -1)
    xyz = torch.where(f > 6 / 29, f**3, (f - 4 / 29) * (3 * (6 / 29) ** 2))
    xyz = xyz * torch.tensor((0.96422, 1.0, 0.82521))
    linear = (xyz @ torch.tensor(_SRGB_OF_XYZ_D50).T).clamp(0, 1)
    srgb = torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (srgb * 255).round().to(torch.uint8).permute(2, 0, 1)[None]


_SRGB_OF_XYZ_D50 = (
    (3.1338561, -1.6168667, -0.4906146),
    (-0.9787684, 1.9161415, 0.0334540),
    (0.0719453, -0.2289914, 1.4052427),
)


# --- resizing ---------------------------------------------------------------------------


def _fitted(pixels: torch.Tensor, wanted: ImageInput) -> torch.Tensor:
    """``[1, C, H, W]`` → contiguous ``[3, height, width]``."""
    if wanted.fit == "crop":
        resized = _cropped(pixels, wanted.height, wanted.width)
    else:
        resized = _resized(pixels, wanted.height, wanted.width)
    rgb = resized[0, :3]
    return rgb.expand(3, -1, -1).contiguous()


def _resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if pixels.shape[-2:] == (height, width):
        return pixels
    if pixels.shape[-2] > height and pixels.shape[-1] < width:
        # The kernel goes along rows first; a tall strip must not be widened while tall.
        pixels = _bicubic(pixels, height, pixels.shape[-1])
    return _bicubic(pixels, height, width)


def _bicubic(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(
        pixels, (height, width), mode="bicubic", antialias=True, align_corners=False
    )


def _cropped(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize until both sides are covered, then cut the centre (as torchvision does)."""
    scale = max(height / pixels.shape[-2], width / pixels.shape[-1])
    # Of a long strip only the middle is seen: what lies beyond four times the
    # crop is cut first, evenly, so that the strip is not resized whole.
    pixels = _middle(pixels, -2, int(4 * height / scale) + 2)
    pixels = _middle(pixels, -1, int(4 * width / scale) + 2)
    full_height = max(height, int(pixels.shape[-2] * scale))
    full_width = max(width, int(pixels.shape[-1] * scale))
    resized = _resized(pixels, full_height, full_width)
    top, left = round((full_height - height) / 2), round((full_width - width) / 2)
    return resized[..., top : top + height, left : left + width]


def _middle(pixels: torch.Tensor, axis: int, most: int) -> torch.Tensor:
    cut = max(0, pixels.shape[axis] - most) // 2
    return pixels.narrow(axis, cut, pixels.shape[axis] - 2 * cut) if cut else pixels
