"""Whether what an image declares can be decoded here: told before anything is allocated."""

from __future__ import annotations

from pathlib import Path

from mmap_st.errors import ImageTooLargeError, counted
from mmap_st.memory import free_memory as free_memory  # imported from here too

#: Pictures of fewer pixels are not looked at: they fit into any memory.
_SMALL_PX = 1 << 26
#: Pixels that a byte of a file may stand for; deflate and LZW make 1,400 at most.
_LARGEST_RATIO = 3_000


def refuse_too_large(path: Path, size: tuple[int, int], bytes_per_px: int, what: str = "an image") -> None:
    """Refuse to decode what does not fit into memory, or cannot be in a file so small.

    Parameters
    ----------
    path
        Of the image, for the message and its length.
    size
        Width and height in pixels of what is decoded at a time.
    bytes_per_px
        What decoding takes, copies included.
    what
        What has this size, for the message.

    Raises
    ------
    ImageTooLargeError
        If so.
    """
    pixels = size[0] * size[1]
    if pixels <= _SMALL_PX:
        return
    declared = f"{path} declares {what} of {size[0]} x {size[1]} px"
    if path.is_file() and pixels > _LARGEST_RATIO * path.stat().st_size:
        raise ImageTooLargeError(
            f"{declared} in {counted(path.stat().st_size, 'byte')}, which cannot be; copy it again, or leave"
            " it out."
        )
    needed, free = pixels * bytes_per_px, free_memory()
    if needed > free:
        raise ImageTooLargeError(
            f"{declared}, which takes {needed / 1e9:.3g} GB of memory to decode, and {free / 1e9:.3g} GB are"
            " free; save it as a TIFF in tiles of 512 px, or use a machine with more memory."
        )
