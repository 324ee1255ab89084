"""What is wrong with an image as a picture: it is blank, without colour, without tissue, or not all there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmap_st.errors import ImageError, RegionError, TissueError, UnsuitableImageError, counted
from mmap_st.extract.slides.formats import Level, is_cut_off
from mmap_st.extract.slides.slide import Slide
from mmap_st.extract.slides.tissue import Tissue, tissue_of, tissue_thumbnail

#: Spread over an image whose tiles are decoded one by one.
_TILES = 32
#: Where tiles are stored in large chunks, fewer are looked at: this many pixels at most are decoded.
_MOST_PX = 1 << 28
#: Of 255. Glass is no brighter than this where something lies on it; a scanner's black is not quite 0; JPEG
#: gives grey pixels a trace of colour.
_WHITE, _BLACK, _COLOURLESS = 230, 25, 8
#: Steps of a sequence in the plane that leaves no large gaps (Roberts' R2).
_STEP = (0.7548776662466927, 0.5698402909980532)

WHITE, BLACK, TRANSPARENT, GREY = "white", "black", "transparent", "grey"
NO_TISSUE, TRUNCATED, DAMAGED, UNSUITABLE = "no tissue", "truncated", "damaged", "unsuitable"

_REASONS = {
    WHITE: "its image is white all over; look at it, and copy or export it again.",
    BLACK: "its image is black all over; look at it, and copy or export it again.",
    TRANSPARENT: "its image is wholly transparent (alpha is 0 everywhere), and is read as white; export it"
    " without an alpha channel.",
    GREY: "its image has no colour at all, only grey, and H&E is pink and purple; export it in colour.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a slide.

    Attributes
    ----------
    state
        In one or two words, such as ``grey``.
    reason
        A sentence for people.
    """

    state: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What was seen of an image.

    Attributes
    ----------
    tissue
        Where it has tissue; None where it has none, or cannot be seen as a whole.
    findings
        What is wrong with it; empty where nothing is.
    """

    tissue: Tissue | None = None
    findings: tuple[Finding, ...] = ()


def inspect_image(slide: Slide, path: Path, mpp: float | None, *, full: bool = False) -> Inspection:
    """Look at an image as a whole, and decode parts of it.

    What is decoded as a whole anyway (JPEG, PNG, TIFF in strips) is; of the others an overview and 32 tiles,
    spread over the finest level.

    Parameters
    ----------
    slide
        The open image.
    path
        Where it is.
    mpp
        Micrometres per level-0 pixel, if known.
    full
        Decode every tile of every level.
    """
    try:
        thumbnail = tissue_thumbnail(slide, mpp)
        damage = _damage(slide, path, full=full)
    except (ImageError, RegionError) as error:
        return Inspection(None, (unreadable(path, error),))
    findings = [] if damage is None else [damage]
    try:
        return Inspection(tissue_of(thumbnail, slide.size, mpp), tuple(findings))
    except TissueError as error:
        state = _blank(thumbnail, slide)
        findings.append(Finding(NO_TISSUE, str(error)) if state is None else Finding(state, _REASONS[state]))
        return Inspection(None, tuple(findings))


def unreadable(path: Path, error: Exception) -> Finding:
    """The finding of an image that cannot be opened or decoded."""
    if isinstance(error, UnsuitableImageError):
        return Finding(UNSUITABLE, str(error))
    return _broken(path, str(error))


def _broken(path: Path, reason: str) -> Finding:
    return Finding(TRUNCATED if is_cut_off(path) else DAMAGED, reason)


def _blank(thumbnail: Image.Image, slide: Slide) -> str | None:
    """Why an image without tissue has none, where the picture tells."""
    rgb = np.asarray(thumbnail, dtype=np.uint8)
    darkest, brightest = rgb.min(axis=2), rgb.max(axis=2)
    if int(darkest.min()) >= _WHITE:
        return TRANSPARENT if slide.is_transparent() else WHITE
    if int(brightest.max()) <= _BLACK:
        return BLACK
    return GREY if float(np.quantile(brightest - darkest, 0.999)) <= _COLOURLESS else None


def _damage(slide: Slide, path: Path, *, full: bool) -> Finding | None:
    """What of the pixels is not there, or cannot be decoded."""
    failed, looked = [], 0
    for level, places in _looked_at(slide, full=full):
        looked += 1
        try:
            _decode(slide, level, places)
        except RegionError as error:
            failed.append(str(error))
    if failed:
        share = f"{len(failed)} of {counted(looked, 'part')} of its image"
        return _broken(path, f"{share} cannot be decoded: {failed[0]}")
    if is_cut_off(path):
        return Finding(
            TRUNCATED, f"{path} ends before its last tiles, as if it was not copied whole; copy it again."
        )
    return None


def _decode(slide: Slide, level: int, places: list[tuple[int, int]]) -> None:
    if len(places) == 1:
        slide.read_tile(level, *places[0])
        return
    for _ in slide.read_tiles(level, places):
        pass


def _looked_at(slide: Slide, *, full: bool) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Level, and the tiles of one block, of each block that is to be decoded."""
    for number, level in enumerate(slide.levels if full else slide.levels[:1]):
        across, down = (-(-size // block) for size, block in zip(level.size, level.block_px, strict=True))
        if full or _in_strips(level):
            blocks = [(column, row) for row in range(down) for column in range(across)]
        else:
            most = max(min(_TILES, _MOST_PX // (level.block_px[0] * level.block_px[1])), 2)
            blocks = _spread(across, down, most)
        for block in blocks:
            yield number, _tiles_of(level, block)


def _in_strips(level: Level) -> bool:
    return level.block[0] > 1 and level.block_px[0] >= level.size[0]


def _tiles_of(level: Level, block: tuple[int, int]) -> list[tuple[int, int]]:
    """Column and row of the tiles of a block."""
    ends = [-(-size // tile) for size, tile in zip(level.size, level.tile, strict=True)]
    columns, rows = (
        range(at * many, min((at + 1) * many, end))
        for at, many, end in zip(block, level.block, ends, strict=True)
    )
    return [(column, row) for row in rows for column in columns]


def _spread(across: int, down: int, most: int) -> list[tuple[int, int]]:
    """At most so many places of a grid, spread evenly over it; its first and its last are among them."""
    if across * down <= most:
        return [(column, row) for row in range(down) for column in range(across)]
    steps: NDArray[np.float64] = np.outer(np.arange(1, most - 1), _STEP) % 1.0
    places = {(0, 0), (across - 1, down - 1)}
    places |= {(int(x * across), int(y * down)) for x, y in steps}
    return sorted(places, key=lambda place: place[::-1])
