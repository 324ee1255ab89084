"""What a viewer answers: each path of its address is one thing, looked up and never joined to a folder."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image

from mmap_st.errors import MmapError, OverviewError, RegionError, of_one_slide, printable
from mmap_st.report.viewer.catalogue import Catalogue
from mmap_st.report.viewer.page import around, assets, figure_json, page_html
from mmap_st.report.viewer.shown_slide import ShownSlide
from mmap_st.report.viewer.tiles import ByteCache, NoTileError, SlideTiles, TileGrid, unreadable_tile
from mmap_st.urls import Url

#: Bytes of values and spots that are kept: what is chosen again is there at once.
VALUE_CACHE_BYTES = 32 << 20
_OVERVIEW_QUALITY = 82


@dataclass(frozen=True)
class Answer:
    """A body, and what it is."""

    body: bytes
    kind: str
    keep: bool = False


class NothingThereError(LookupError):
    """There is nothing at a path."""


@dataclass(frozen=True)
class Picture:
    """What lies under a slide's spots.

    Attributes
    ----------
    grid
        Of its tiles; None where there are none.
    note
        Why there are none, for people.
    """

    grid: TileGrid | None
    note: str


class Answers:
    """The answers to a viewer's page.

    Parameters
    ----------
    catalogue
        The slides.
    start
        The one to begin with.
    tiles
        Reads their images.
    """

    def __init__(self, catalogue: Catalogue, start: str, tiles: SlideTiles | None = None) -> None:
        self._catalogue, self._start = catalogue, start
        self.tiles = SlideTiles() if tiles is None else tiles
        self.kept = ByteCache(VALUE_CACHE_BYTES)
        #: Slides are named by number in addresses.
        self._names = {str(number): name for number, name in enumerate(catalogue.names)}
        #: What there is of a slide, and how many parts of a path may come after that.
        self._of_slide: Mapping[str, tuple[Callable[..., Answer], tuple[int, ...]]] = {
            "about.json": (self._about, (0,)),
            "figure.json": (self._figure, (0,)),
            "ids.json": (self._ids, (0,)),
            "spots": (self._spots, (0,)),
            "overview.jpg": (self._overview, (0,)),
            "values": (self._values, (1, 2)),
            "tiles": (self._tile, (3,)),
        }

    def __call__(self, path: str) -> Answer:
        """The answer to a path, percent-encoded, without its first slash.

        Raises
        ------
        NothingThereError
            If there is nothing.
        MmapError
            If it cannot be read.
        """
        try:
            first, *rest = (unquote(part, errors="strict") for part in path.split("/"))
        except UnicodeDecodeError as error:
            raise NothingThereError from error
        if not rest:
            return self._own(first)
        if first != "slides" or len(rest) < 2 or rest[0] not in self._names or rest[1] not in self._of_slide:
            raise NothingThereError
        (key, what), parts = rest[:2], rest[2:]
        answer, counts = self._of_slide[what]
        if len(parts) not in counts:
            raise NothingThereError
        return answer(self._catalogue[self._names[key]], *parts)

    def _own(self, name: str) -> Answer:
        if name == "":
            return Answer(self._page, "text/html; charset=utf-8")
        if name == "slides.json":
            keys = [{"key": key, "name": printable(own)} for key, own in self._names.items()]
            start = next(key for key, own in self._names.items() if own == self._start)
            asked = self._catalogue.genes is not None
            return _json({"slides": keys, "start": start, "asked": asked, "failed": self._failed})
        if name not in assets():
            raise NothingThereError
        return Answer(*assets()[name], keep=True)

    @property
    def failed(self) -> dict[str, str]:
        """Why slides are not shown, by name."""
        return dict(self._catalogue.failed)

    @cached_property
    def _page(self) -> bytes:
        return page_html(printable(self._catalogue.title)).encode()

    @property
    def _failed(self) -> list[str]:
        return [f"{printable(name)}: {printable(why)}" for name, why in self._catalogue.failed.items()]

    def picture(self, slide: ShownSlide) -> Picture:
        """What lies under a slide's spots, and why it is not more."""
        if slide.image is None:
            return Picture(None, "no image of this slide is known" + _white(slide))
        if isinstance(slide.image, Url):
            why = f"no picture of the slide: {slide.image} is not on a disk; copy it there to see it"
            return Picture(None, why + _white(slide))
        try:
            grid = self.tiles.grid(slide.image)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that image's
            reason = str(of_one_slide(error)).removesuffix(".")
            return Picture(None, f"no picture of the slide: {reason}" + _white(slide))
        if slide.size_px is not None and tuple(slide.size_px) != grid.size:
            was = " x ".join(map(str, slide.size_px))
            now = " x ".join(map(str, grid.size))
            return Picture(
                None,
                f"{slide.image} is not shown: it has {now} pixels, and the image that was embedded {was}"
                + _white(slide),
            )
        return Picture(grid, "")

    def _about(self, slide: ShownSlide) -> Answer:
        picture = self.picture(slide)
        return _json(
            {
                "name": printable(slide.name),
                "units": printable(slide.units),
                "verdict": printable(slide.verdict),
                "spots": len(slide.ids),
                "genes": slide.genes,
                "best": slide.best,
                "layers": [
                    {"name": key, "title": printable(of.title), "of_gene": of.of_gene, "colours": of.colours}
                    for key, of in slide.layers.items()
                ],
                "around": around(slide),
                "unit": "µm" if slide.mpp else "px",
                "diameter": slide.diameter_px * (slide.mpp or 1.0),
                "notes": [printable(note) for note in (*slide.notes, picture.note, _scale(slide)) if note],
            }
        )

    def _figure(self, slide: ShownSlide) -> Answer:
        return Answer(figure_json(slide, self.picture(slide).grid).encode(), "application/json")

    def _ids(self, slide: ShownSlide) -> Answer:
        return _json([printable(own) for own in slide.ids])

    def _spots(self, slide: ShownSlide) -> Answer:
        """Centres as float32 x, y in the units of the map, y upwards."""
        xy = slide.xy * (slide.mpp or 1.0) * (1.0, -1.0)
        return Answer(np.ascontiguousarray(xy, "<f4").tobytes(), _BYTES, keep=True)

    def _values(self, slide: ShownSlide, layer: str, gene: str | None = None) -> Answer:
        """Values of a layer as float32, NaN where there is none."""
        key = (slide.name, layer, gene)
        body = self.kept.get(key)
        if body is None:
            if not slide.has(layer, gene):
                raise NothingThereError
            body = np.ascontiguousarray(slide.read(layer, gene), "<f4").tobytes()
            self.kept.put(key, body)
        return Answer(body, _BYTES, keep=True)

    def _overview(self, slide: ShownSlide) -> Answer:
        if slide.thumbnail is None:
            raise NothingThereError
        buffer = io.BytesIO()
        Image.fromarray(slide.thumbnail.pixels[..., :3]).save(buffer, "JPEG", quality=_OVERVIEW_QUALITY)
        return Answer(buffer.getvalue(), "image/jpeg", keep=True)

    def _tile(self, slide: ShownSlide, zoom: str, column: str, row: str) -> Answer:
        place = _number(zoom), _number(column), _number(row)
        if not isinstance(slide.image, Path) or self.picture(slide).grid is None:
            raise NothingThereError
        try:
            return Answer(self.tiles.tile(slide.image, *place), "image/jpeg", keep=True)
        except NoTileError as error:
            raise NothingThereError from error
        except (RegionError, OverviewError):
            return Answer(unreadable_tile(), "image/jpeg")

    def close(self) -> None:
        """Free the images."""
        self.tiles.close()


_BYTES = "application/octet-stream"


def _json(content: object) -> Answer:
    return Answer(json.dumps(content, allow_nan=False).encode(), "application/json")


def _number(text: str) -> int:
    """A number of a tile; what is none is no tile."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise NothingThereError
    return int(text)


def _white(slide: ShownSlide) -> str:
    return "; spots lie on white" if slide.thumbnail is None else "; the picture is a thumbnail"


def _scale(slide: ShownSlide) -> str:
    known = slide.mpp is not None and math.isfinite(slide.mpp)
    return "" if known else "the slide's scale is not known, so there is no scale bar"


def refusal(error: MmapError) -> Answer:
    """What is said where something cannot be read."""
    return _json({"error": printable(str(error))})
