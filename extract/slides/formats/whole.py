"""Whether an image file is all there: cheap to tell from where its parts should end."""

from __future__ import annotations

from pathlib import Path

#: A JPEG or PNG may be followed by a little padding.
_TAIL = 64
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_TIFF = (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")


def is_cut_off(path: Path) -> bool:
    """Whether a JPEG, PNG or TIFF ends before it should, as a file that was not copied whole."""
    if not path.is_file():  # of a device, the rest never ends
        return False
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
            file.seek(max(size - _TAIL, 0))
            tail = file.read()
    except OSError:  # nothing that can be read
        return False
    if start.startswith(_JPEG):
        return _JPEG_END not in tail
    if start.startswith(_PNG):
        return _PNG_END not in tail
    return start[:4] in _TIFF and _tiff_end(path, start) > size


def _tiff_end(path: Path, start: bytes) -> int:
    """Where the last byte of a TIFF's pixels, or its directory, should be."""
    import tifffile

    at = start[8:16] if start[2:4] in (b"+\0", b"\0+") else start[4:8]
    end = int.from_bytes(at, "little" if start[:2] == b"II" else "big") + 1
    try:
        with tifffile.TiffFile(path) as file:
            for page in file.pages:
                for part in (page, *(getattr(page, "pages", None) or ())):
                    spans = zip(part.dataoffsets, part.databytecounts, strict=False)
                    end = max(end, *(offset + count for offset, count in spans if count), 0)
    except Exception:  # noqa: BLE001 - of many kinds, by what is damaged; the directory's place is known
        return end
    return end
