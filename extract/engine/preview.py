"""Previews: the tissue that was found and the spots on it, drawn over a slide before it is embedded."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mmap_st.data import Cohort, CohortSlide, Spots
from mmap_st.data.readers import read_spots
from mmap_st.errors import ImageError, ResolutionError, TissueError, counted, of_one_slide, printable
from mmap_st.extract.engine.planning import (
    has_spots,
    lacks_image,
    place_spots_on,
)
from mmap_st.extract.slides import (
    GridRequest,
    Slide,
    SourceMpp,
    Tissue,
    find_tissue,
    local_image,
    open_slide,
    share_on_tissue,
    stored_grid,
)
from mmap_st.extract.store import FeatureStore, encode_name, is_nonempty
from mmap_st.files import check_folder_out, file_name, refuse_clashes, writing
from mmap_st.progress import ProgressCallback

_LONGEST_PX = 2000
_SHORTEST_PX = 1000
_OUTLINE = (0, 166, 90)
_SPOT = (255, 214, 0)
_RIM = (40, 32, 0)
_INK = (30, 30, 30)
_QUIET = (95, 95, 95)
#: Dots are drawn this many times larger and shrunk, for smooth edges.
_FINER = 3


@dataclass
class PreviewReport:
    """Pictures written, slides without an image or spots, and why others failed.

    Attributes
    ----------
    unscaled
        Why the um/px of slides is not known; they are drawn, and would not be embedded.
    """

    written: dict[str, Path] = field(default_factory=dict)
    skipped_slides: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    unscaled: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    """What is drawn over a slide; see `Placement`.

    Attributes
    ----------
    source
        None where the slide's micrometres per pixel are not known: it is drawn without a scale bar.
    spots
        None where a grid was to be laid, which needs them.
    """

    size_px: tuple[int, int]
    source: SourceMpp | None
    spots: Spots | None
    made_by: dict[str, object] | None = None


def preview_cohort(
    cohort: Cohort,
    store_path: Path | None,
    folder: Path,
    grid: GridRequest | None = None,
    progress: ProgressCallback = lambda text: None,
    *,
    option: str = "--preview",
) -> PreviewReport:
    """Write one JPEG a slide, of the spots that an extraction into this store would embed.

    Parameters
    ----------
    cohort
        Slides; rows without an image, or without spots where no grid is requested, are skipped.
    store_path
        A feature store, which is only read; there need not be one (yet).
    folder
        Where to write.
    grid
        Laid on the tissue of slides that have no spot table.
    progress
        Told which slide is being drawn.
    option
        What named the folder, for messages.

    Raises
    ------
    RequestError
        If the folder cannot be written to, or the store is not one.
    """
    check_folder_out(folder, option)
    refuse_clashes(map(encode_name, cohort.names), folder)
    there = store_path is not None and is_nonempty(store_path)
    store = FeatureStore.open(store_path) if store_path is not None and there else None
    report = PreviewReport()
    for row in cohort.slides:
        if not has_spots(row, grid) and not lacks_image(row):
            report.skipped_slides.append(row.slide)
            continue
        progress(f"drawing {row.slide}")
        try:
            picture, unscaled = _preview_slide(row, store, grid)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            report.failed[row.slide] = str(of_one_slide(error))
            continue
        path = folder / file_name(encode_name(row.slide), ".jpg")
        with writing(folder, option):
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(path, "JPEG", quality=88, subsampling=0)
        report.written[row.slide] = path
        if unscaled is not None:
            report.unscaled[row.slide] = unscaled
    return report


def _preview_slide(
    row: CohortSlide, store: FeatureStore | None, grid: GridRequest | None
) -> tuple[Image.Image, str | None]:
    """The picture of a slide, and why its um/px are not known if they are not."""
    if row.image is None:
        raise ImageError("the cohort names no image for it.")
    with local_image(row.image) as path, closing(open_slide(path)) as slide:
        tissue = unscaled = None
        try:
            placed = place_spots_on(slide, row, store, grid)
        except ResolutionError as error:
            unscaled = str(error)
            drawing = Drawing(slide.size, None, None if row.spots is None else read_spots(row))
        else:
            tissue = placed.tissue
            drawing = Drawing(placed.size_px, placed.source, placed.spots, placed.made_by)
        tissue = tissue or _tissue_or_none(slide, drawing.source)
        return draw_preview(slide.thumbnail(_LONGEST_PX), row.slide, drawing, tissue), unscaled


def _tissue_or_none(slide: Slide, source: SourceMpp | None) -> Tissue | None:
    """Spots of a slide's spot table are shown also where no tissue is found."""
    try:
        return find_tissue(slide, None if source is None else source.mpp)
    except TissueError:
        return None


def draw_preview(thumbnail: Image.Image, name: str, drawing: Drawing, tissue: Tissue | None) -> Image.Image:
    """Draw the outline of the tissue and the spots over a thumbnail, with a caption and a scale bar below."""
    enlarged = math.ceil(_SHORTEST_PX / max(thumbnail.size))
    picture = thumbnail.resize((thumbnail.width * enlarged, thumbnail.height * enlarged))
    scale = drawing.size_px[0] / picture.width
    if tissue is not None:
        _draw_outline(picture, tissue)
    if drawing.spots is not None:
        _draw_spots(picture, drawing.spots, _radius(drawing, scale), scale)
    um_per_px = None if drawing.source is None else drawing.source.mpp * scale
    return _with_caption(picture, name, _facts(drawing, tissue), um_per_px)


def _draw_outline(picture: Image.Image, tissue: Tissue) -> None:
    mask = Image.fromarray(tissue.mask).convert("L").resize(picture.size, Image.Resampling.BICUBIC)
    inside = np.pad(np.asarray(mask) > 127, 1)  # where tissue is cut by the picture's edge, so is the outline
    depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
    width = max(picture.size) / 500
    strength = np.where(depth > 0, np.clip(width + 0.5 - depth, 0.0, 1.0), 0.0)
    picture.paste(_OUTLINE, mask=Image.fromarray((255 * strength).astype(np.uint8)))


def _draw_spots(picture: Image.Image, spots: Spots, radius: float, scale: float) -> None:
    rim = max(radius * 0.3, 0.4)
    finer = picture.width * _FINER, picture.height * _FINER
    for colour, reach in ((_RIM, (radius + rim) * _FINER), (_SPOT, radius * _FINER)):
        dots = Image.new("L", finer)
        pen = ImageDraw.Draw(dots)
        for x, y in (spots.xy / scale * _FINER).tolist():
            pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
        picture.paste(colour, mask=dots.resize(picture.size, Image.Resampling.BOX))


def _radius(drawing: Drawing, scale: float) -> float:
    """Of a dot, in pixels of the picture."""
    pitch_um = _pitch_um(drawing)
    if pitch_um is None or drawing.source is None:
        return 4.0
    return min(max(0.16 * pitch_um / drawing.source.mpp / scale, 0.8), 7.0)


def _pitch_um(drawing: Drawing) -> float | None:
    grid = stored_grid(drawing.made_by)
    if grid is not None:
        return grid.pitch_um
    return None if drawing.spots is None else drawing.spots.pitch_um


def _with_caption(picture: Image.Image, name: str, facts: list[str], um_per_px: float | None) -> Image.Image:
    size = max(picture.size) // 75
    title, plain = ImageFont.load_default(size * 1.25), ImageFont.load_default(size)
    margin = size
    bar_um = 0.0 if um_per_px is None else _nice_length(picture.width * um_per_px / 6)
    bar_px = 0.0 if um_per_px is None else bar_um / um_per_px
    lines = _wrapped(facts, plain, picture.width - 4 * margin - bar_px)
    step = round(size * 1.5)
    height = 2 * margin + round(1.7 * size) + step * len(lines)
    canvas = Image.new("RGB", (picture.width, picture.height + height), "white")
    canvas.paste(picture)
    pen = ImageDraw.Draw(canvas)
    top = picture.height + margin
    pen.line((0, picture.height, picture.width, picture.height), fill=(200, 200, 200))
    pen.text((margin, top), printable(name), fill=_INK, font=title)
    for number, line in enumerate(lines):
        pen.text((margin, top + round(1.9 * size) + step * number), line, fill=_QUIET, font=plain)
    if not bar_px:
        return canvas
    right = picture.width - margin
    text = f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um:g} um"
    pen.text((right - bar_px / 2, top), text, fill=_INK, font=plain, anchor="ma")
    bar_top = top + round(1.4 * size)
    pen.rectangle((right - bar_px, bar_top, right, bar_top + size // 4), fill=_INK)
    return canvas


def _facts(drawing: Drawing, tissue: Tissue | None) -> list[str]:
    width, height = drawing.size_px
    source, spots = drawing.source, drawing.spots
    pitch_um, grid = _pitch_um(drawing), stored_grid(drawing.made_by)
    facts = [f"{width} x {height} px"]
    facts.append("um/px not known" if source is None else f"{source.mpp:.4g} um/px ({source.source})")
    if spots is not None:
        facts.append(
            f"{counted(len(spots), 'spot')}{' of its own' if grid is None else f', {grid.layout} grid'}"
        )
    if pitch_um is not None:
        facts.append(f"{pitch_um:g} um apart")
    if tissue is None:
        return [*facts, "no tissue found"]
    if source is not None:
        area = np.count_nonzero(tissue.mask) * tissue.scale[0] * tissue.scale[1] * (source.mpp / 1000) ** 2
        facts.append(f"{area:.3g} mm2 of tissue")
    if spots is not None and grid is None:
        facts.append(f"{share_on_tissue(tissue, spots.xy):.0%} of spots on it")
    return facts


def _wrapped(facts: list[str], font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: float) -> list[str]:
    """Facts in lines that fit."""
    lines: list[str] = []
    for fact in facts:
        longer = f"{lines[-1]} · {fact}" if lines else fact
        if lines and font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(fact)
    return lines


def _nice_length(most_um: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is not above `most_um`."""
    power = 10.0 ** math.floor(math.log10(most_um))
    return max(step * power for step in (1, 2, 5) if step * power <= most_um * (1 + 1e-9))
