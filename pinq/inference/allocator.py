"""Keep the memory of decoded images instead of giving it back after each one.

glibc maps every large block anew, and the kernel clears each page at its first touch:
at a few megabytes an image that was 8% of a worker's CPU time (`docs/benchmarks.md`), much of
it with the GIL held. A worker's batches all look alike, so what one has used the next one uses.
"""

import ctypes
import sys

# mallopt's parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1024 * 1024
_PILLOW_BLOCKS = 16


def keep_freed_memory() -> None:
    """Tell glibc and Pillow to keep freed memory; nothing where there is no glibc.

    The process's memory stays at the most that its batches needed at once.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)  # the largest that glibc takes
            mallopt(_M_TRIM_THRESHOLD, 1024 * _MIB)
            mallopt(_M_TOP_PAD, 16 * _MIB)
    from PIL import Image

    set_blocks_max = getattr(getattr(Image, "core", None), "set_blocks_max", None)
    if set_blocks_max is not None:
        set_blocks_max(_PILLOW_BLOCKS)
