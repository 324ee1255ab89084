"""Tiles of whole slides at any zoom, as JPEG: what the program reads, in the orientation that it reads."""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmap_st.extract.slides import Slide, open_slide

TILE_PX = 512
_QUALITY = 85
#: Levels farther apart than this are bridged by making the finer one smaller while it is read.
_STEP = 4
#: Longer sides of pictures of the whole slide that are kept in memory, where no level of its own is as small.
_OVERVIEW_PX = 2048
#: What is read at a time of a level that is made smaller.
_BLOCK_PX = 2048
#: Bytes of JPEG tiles, and slides, that are kept.
TILE_CACHE_BYTES, MOST_OPEN = 64 << 20, 2
#: Tiles that are made at a time: each holds a few regions of 2,048 px.
_AT_ONCE = 4


class NoTileError(LookupError):
    """A slide has no such tile."""


@dataclass(frozen=True)
class _Level:
    """A level of the pyramid that tiles are cut from: a slide's own, one made smaller, or the whole picture.

    Attributes
    ----------
    size
        Width and height in its own pixels.
    of
        Number of the slide's own level that it is made of; None: the overview.
    factor
        How many of that level's pixels one of its pixels is wide.
    """

    size: tuple[int, int]
    of: int | None
    factor: int


class SlidePyramid:
    """A slide as OpenSlide's `DeepZoomGenerator` takes one.

    Where a slide has few levels, or one, it has more of them here, so that no tile needs a large region.
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self._levels = _levels(slide)
        self._overview: Image.Image | None = None
        self._lock = threading.Lock()
        self.dimensions = slide.size
        self.level_dimensions = tuple(level.size for level in self._levels)
        self.level_downsamples = tuple(
            _downsample(slide.size, level.size)
            if level.of is None
            else _downsample(slide.size, slide.levels[level.of].size) * level.factor
            for level in self._levels
        )
        self.properties: dict[str, str] = {}

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Number of the coarsest level that is at least this fine."""
        fine = [number for number, own in enumerate(self.level_downsamples) if own <= downsample * 1.01]
        return fine[-1] if fine else 0

    def read_region(self, location: tuple[int, int], number: int, size: tuple[int, int]) -> Image.Image:
        """RGBA of a level's pixels from a corner in level-0 pixels; white outside."""
        own = self.level_downsamples[number]
        # DeepZoom rounds the corner down to whole level-0 pixels: back to the level's own.
        level = self._levels[number]
        # A sliver at the edge may be less than a pixel of a coarse level: then its last one.
        x, y = (
            min(math.ceil(place / own - 1e-6), side - 1)
            for place, side in zip(location, level.size, strict=True)
        )
        box = (x, y, x + max(size[0], 1), y + max(size[1], 1))
        if level.of is None:
            region = self._whole(level.size).crop(box)
        elif level.factor == 1:
            region = self._slide.read(box, level.of)
        else:
            region = self._reduced(box, level.of, level.factor)
        return region.convert("RGBA")

    def _reduced(self, box: tuple[int, int, int, int], of: int, factor: int) -> Image.Image:
        x0, y0, x1, y1 = box
        region = Image.new("RGB", (x1 - x0, y1 - y0), "white")
        step = max(_BLOCK_PX // factor, 1)
        for y in range(y0, y1, step):
            for x in range(x0, x1, step):
                to = min(x + step, x1), min(y + step, y1)
                part = self._slide.read((x * factor, y * factor, to[0] * factor, to[1] * factor), of)
                region.paste(part.reduce(factor), (x - x0, y - y0))
        return region

    def _whole(self, size: tuple[int, int]) -> Image.Image:
        """The whole slide; made once, since that may decode all of it."""
        with self._lock:
            if self._overview is None:
                picture = self._slide.thumbnail(max(size)).convert("RGB")
                self._overview = picture if picture.size == size else picture.resize(size)
            return self._overview


def _downsample(whole: tuple[int, int], part: tuple[int, int]) -> float:
    """As OpenSlide has it: the mean of both axes."""
    return (whole[0] / part[0] + whole[1] / part[1]) / 2


def _levels(slide: Slide) -> list[_Level]:
    """The slide's own levels, those that bridge them, and the overview, finest first."""
    own = [(level.size, number) for number, level in enumerate(slide.levels)]
    ends: list[tuple[tuple[int, int], int | None]] = [*own]
    smallest = slide.levels[-1].size
    if max(smallest) > _OVERVIEW_PX:
        scale = _OVERVIEW_PX / max(smallest)
        ends.append(((max(round(smallest[0] * scale), 1), max(round(smallest[1] * scale), 1)), None))
    found: list[_Level] = []
    for place, (size, number) in enumerate(ends):
        found.append(_Level(size, number, 1))
        after = ends[place + 1][0] if place + 1 < len(ends) else None
        factor = _STEP
        while number is not None and after is not None and max(size) / factor > max(after) * 1.01:
            found.append(_Level((-(-size[0] // factor), -(-size[1] // factor)), number, factor))
            factor *= _STEP
    return found


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a slide: zoom 0 is one tile that shows all, each further zoom is twice as fine.

    Attributes
    ----------
    size
        Of the slide in level-0 pixels.
    zooms
        How many there are; the last has the slide's own pixels.
    """

    size: tuple[int, int]

    @property
    def zooms(self) -> int:
        """How many zooms there are."""
        return 1 + max(0, math.ceil(math.log2(max(self.size) / TILE_PX)))

    def tiles(self, zoom: int) -> tuple[int, int]:
        """Tiles across and down."""
        px = TILE_PX * 2 ** (self.zooms - 1 - zoom)
        return -(-self.size[0] // px), -(-self.size[1] // px)

    def has(self, zoom: int, column: int, row: int) -> bool:
        """Whether there is such a tile."""
        if not 0 <= zoom < self.zooms:
            return False
        across, down = self.tiles(zoom)
        return 0 <= column < across and 0 <= row < down


@dataclass
class _Open:
    """A slide that is open, and how many threads are reading it."""

    slide: Slide
    zoomer: Any
    grid: TileGrid
    users: int = 0
    dropped: bool = False


class SlideTiles:
    """Tiles of several slides; a few slides are open and some tiles kept at a time.

    Parameters
    ----------
    opener
        Opens a slide.
    most_bytes, most_open
        Of tiles, and of slides, that are kept.
    """

    def __init__(
        self,
        opener: Callable[[Path], Slide] = open_slide,
        *,
        most_bytes: int = TILE_CACHE_BYTES,
        most_open: int = MOST_OPEN,
    ) -> None:
        self._opener, self._most_open = opener, most_open
        self.kept = ByteCache(most_bytes)
        self._open: OrderedDict[Path, _Open] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._at_once = threading.BoundedSemaphore(_AT_ONCE)

    def grid(self, image: Path) -> TileGrid:
        """The tiles of an image.

        Raises
        ------
        ImageError
            If it cannot be opened.
        """
        with self._lent(image) as opened:
            return opened.grid

    def tile(self, image: Path, zoom: int, column: int, row: int) -> bytes:
        """A tile as JPEG, cut at the slide's edge.

        Raises
        ------
        NoTileError
            If there is no such tile.
        ImageError, RegionError
            If the image, or this part of it, cannot be decoded.
        """
        key = (image, zoom, column, row)
        known = self.kept.get(key)
        if known is not None:
            return known
        with self._at_once, self._lent(image) as opened:
            if not opened.grid.has(zoom, column, row):
                raise NoTileError
            level = opened.zoomer.level_count - opened.grid.zooms + zoom
            buffer = io.BytesIO()
            opened.zoomer.get_tile(level, (column, row)).save(buffer, "JPEG", quality=_QUALITY)
        made = buffer.getvalue()
        self.kept.put(key, made)
        return made

    @contextmanager
    def _lent(self, image: Path) -> Iterator[_Open]:
        opened = self._take(image)
        if opened is None:
            with self._opening:  # one at a time: the same slide is asked for by several threads
                opened = self._take(image) or self._opened(image)
        try:
            yield opened
        finally:
            with self._lock:
                opened.users -= 1
                unused = opened.dropped and opened.users == 0
            if unused:
                opened.slide.close()

    def _take(self, image: Path) -> _Open | None:
        with self._lock:
            opened = self._open.get(image)
            if opened is not None:
                self._open.move_to_end(image)
                opened.users += 1
            return opened

    def _opened(self, image: Path) -> _Open:
        from openslide.deepzoom import DeepZoomGenerator

        slide = self._opener(image)
        pyramid: Any = SlidePyramid(slide)  # what of OpenSlide's class is used there
        zoomer = DeepZoomGenerator(pyramid, TILE_PX, overlap=0)
        opened = _Open(slide, zoomer, TileGrid(slide.size), users=1)
        with self._lock:
            self._open[image] = opened
            over = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - self._most_open)]
            idle = self._dropped(over)
        for one in idle:
            one.slide.close()
        return opened

    @staticmethod
    def _dropped(over: list[_Open]) -> list[_Open]:
        """Those that nobody reads; the others are closed by their last reader."""
        for one in over:
            one.dropped = True
        return [one for one in over if one.users == 0]

    def close(self) -> None:
        """Free the slides; those that are being read, when that is done."""
        with self._lock:
            over = list(self._open.values())
            self._open.clear()
            idle = self._dropped(over)
        for one in idle:
            one.slide.close()


@cache
def unreadable_tile() -> bytes:
    """What is shown of a part that cannot be decoded: grey and hatched, as neither tissue nor glass is."""
    y, x = np.mgrid[:128, :128]
    grey = np.where((x + y) % 16 < 3, 90, 190).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


@dataclass
class ByteCache:
    """What was last used, up to a number of bytes. Safe to use from threads."""

    most_bytes: int
    held_bytes: int = 0
    _held: OrderedDict[object, bytes] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: object) -> bytes | None:
        """What is held, or None."""
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
            return found

    def put(self, key: object, value: bytes) -> None:
        """Hold it, and forget what was not used for the longest time."""
        if len(value) > self.most_bytes:
            return
        with self._lock:
            self.held_bytes += len(value) - len(self._held.pop(key, b""))
            self._held[key] = value
            while self.held_bytes > self.most_bytes:
                _, dropped = self._held.popitem(last=False)
                self.held_bytes -= len(dropped)
