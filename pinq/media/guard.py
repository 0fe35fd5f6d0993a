"""What is admitted as an image, told from its header before a pixel is decoded.

The format comes from the first bytes, never from a name; the size from the
file's own header. Pillow's plugins are called one by one instead of through
``Image.open``: only the format that the bytes name is tried, and the limit on
pixels is pinq's, so that Pillow's process-wide ``Image.MAX_IMAGE_PIXELS`` (and
its warnings) stay as the embedding program left them.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from pinq.config import MediaSettings
from pinq.errors import FailureClass, MediaError

MAX_SIDE = 1 << 20
"""Pixels along one side. Resizing takes memory in proportion to the longer side
alone, so a strip of one pixel by a hundred million needs a limit of its own."""

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
if features.check("webp"):
    _PLUGINS["WEBP"] = WebPImagePlugin.WebPImageFile
with suppress(ImportError):  # before Pillow 11.3
    from PIL import AvifImagePlugin

    if AvifImagePlugin.SUPPORTED:
        _PLUGINS["AVIF"] = AvifImagePlugin.AvifImageFile

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    # Known, so that a refusal can name them; never admitted.
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\0\0\1\0", "ICO"),
    (b"<svg", "SVG"),
    (b"qoif", "QOI"),
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"})


def sniff(data: bytes) -> str | None:
    """The format that the first bytes name ("JPEG", "HEIC"…), or None."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIC"
    return None


def admit(data: bytes, limits: MediaSettings) -> ImageFile.ImageFile:
    """Open an image lazily: its header is read and checked, its pixels are not.

    Raises:
        MediaError: ``REFUSED`` for a format or a size that is not admitted;
            ``UNDECODABLE`` for bytes that are no image, or a damaged header.
    """
    if not data:
        raise MediaError(FailureClass.UNDECODABLE, "no bytes: the image is empty")
    name = sniff(data)
    if name is None:
        raise MediaError(
            FailureClass.UNDECODABLE, f"not an image: it begins with {data[:12]!r}, no known format"
        )
    if name not in limits.formats:
        admitted = ", ".join(limits.formats)
        raise MediaError(
            FailureClass.REFUSED, f"{name} is not admitted; media.formats has {admitted}"
        )
    plugin = _PLUGINS.get(name)
    if plugin is None:
        raise MediaError(
            FailureClass.REFUSED,
            f"{name} is admitted, but this machine's Pillow was built without it",
        )
    if name == "WEBP":
        # Its decoder allocates the whole canvas when it is opened.
        _check_size(*_webp_size(data), limits)
    with translated(f"damaged {name} header"):
        image = plugin(io.BytesIO(data), "")
    _check_size(*image.size, limits)
    return image


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn whatever Pillow raises on a bad image into a MediaError of its class."""
    try:
        yield
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError(FailureClass.OUT_OF_MEMORY, "no memory to decode the image") from error
    except Image.DecompressionBombError as error:
        raise MediaError(FailureClass.REFUSED, str(error)) from error
    # Damaged bytes make Pillow raise almost anything: SyntaxError, OSError,
    # struct.error, ValueError, EOFError, AttributeError, zlib.error…
    except Exception as error:
        # The words of Pillow's codecs and of torch for an allocation that failed.
        if str(error).startswith("out of memory") or "allocate memory" in str(error):
            raise MediaError(FailureClass.OUT_OF_MEMORY, f"{what}: {error}") from error
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise MediaError(FailureClass.UNDECODABLE, f"{what}: {reason}") from error


def _check_size(width: int, height: int, limits: MediaSettings) -> None:
    if width < 1 or height < 1:
        raise MediaError(FailureClass.UNDECODABLE, f"an image of {width}×{height} has no pixels")
    if width * height > limits.max_pixels:
        raise MediaError(
            FailureClass.REFUSED,
            f"{width}×{height} is {width * height} pixels; "
            f"media.max_pixels admits {limits.max_pixels}",
        )
    if max(width, height) > MAX_SIDE:
        raise MediaError(
            FailureClass.REFUSED, f"{width}×{height}: a side is over {MAX_SIDE} pixels"
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from a WebP's first chunk (RFC 9649, sections 2.5 to 2.7)."""
    kind, little = data[12:16], int.from_bytes
    if len(data) < 30:
        raise MediaError(FailureClass.UNDECODABLE, "damaged WEBP header: the file is truncated")
    if kind == b"VP8X":
        return little(data[24:27], "little") + 1, little(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = little(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = little(data[26:28], "little"), little(data[28:30], "little")
        return width & 0x3FFF, height & 0x3FFF
    raise MediaError(FailureClass.UNDECODABLE, f"damaged WEBP header: unknown chunk {kind!r}")
