"""Simulated tissue: where the cells of one section lie, and the H&E-like picture of them.

Three scales are kept apart on purpose, so that a method's use of each can be measured:

* fine (tens of um): nests of two kinds of tumour cell;
* coarse (hundreds of um): the density of lymphocytes, whose local clumps hide it from a small window;
* global (the section): the share of the section that is tumour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter, map_coordinates

CELL_TYPES = ("tumour_a", "tumour_b", "lymphocyte", "fibroblast")

_GRID_UM = 10.0  # resolution of the random fields
_SITE_UM = 12.0  # spacing of the sites that can hold one cell

_REGION_UM = 260.0
_NEST_UM = 26.0
_INFILTRATE_UM = 90.0
_CLUMP_UM = 14.0


@dataclass(frozen=True)
class Tissue:
    """The cells of one simulated section.

    Attributes
    ----------
    size_um
        Side of the square section, in micrometres.
    xy_um
        (c, 2) float64, centres of the cells in micrometres, x to the right and y down.
    cell_type
        (c,) int64, index into `CELL_TYPES`.
    outline
        (g, g) float64 on a grid of `grid_um`: positive inside the tissue.
    tumour
        (g, g) float64 on the same grid: share of tumour, 0 to 1.
    grid_um
        Side of one cell of the two grids, in micrometres.
    """

    size_um: float
    xy_um: NDArray[np.float64]
    cell_type: NDArray[np.int64]
    outline: NDArray[np.float64]
    tumour: NDArray[np.float64]
    grid_um: float = _GRID_UM

    @property
    def tumour_share(self) -> float:
        """Share of the section's cells that are tumour cells: its global composition."""
        return float(np.mean(self.cell_type <= 1))


def sample_field(field: NDArray[np.float64], xy_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of a grid of `_GRID_UM` at points in micrometres, interpolated linearly."""
    rows_cols = np.stack([xy_um[:, 1], xy_um[:, 0]]) / _GRID_UM - 0.5
    values: NDArray[np.float64] = map_coordinates(field, rows_cols, order=1, mode="nearest")
    return values


def grow_tissue(
    rng: np.random.Generator, size_um: float, tumour_share: float, *, coarse: bool = True
) -> Tissue:
    """Draw one section at random.

    Parameters
    ----------
    rng
        Source of all randomness.
    size_um
        Side of the square section in micrometres.
    tumour_share
        Share of the tissue's area that is tumour, 0 to 1.
    coarse
        False: regions and infiltrates are no larger than nests, so that what surrounds a spot tells next to
        nothing of the spot.
    """
    region_um, infiltrate_um = (_REGION_UM, _INFILTRATE_UM) if coarse else (_NEST_UM, _NEST_UM)
    grid = round(size_um / _GRID_UM)
    outline = _outline(rng, grid)
    inside = outline > 0
    regions = _random_field(rng, grid, region_um)
    threshold = np.quantile(regions[inside], 1.0 - tumour_share)
    tumour = 1.0 / (1.0 + np.exp(-(regions - threshold) / 0.06))
    nests = 1.0 / (1.0 + np.exp(-_random_field(rng, grid, _NEST_UM) / 0.25))
    infiltrate = np.clip(0.32 + 0.26 * _random_field(rng, grid, infiltrate_um), 0.0, 1.0)
    clumps = np.clip(1.0 + 1.3 * _random_field(rng, grid, _CLUMP_UM), 0.0, None)
    lymphocytes = np.clip(infiltrate * clumps, 0.0, 0.95)

    sites = _sites(rng, size_um)
    sites = sites[sample_field(outline, sites) > 0]
    is_tumour = sample_field(tumour, sites)
    is_b = sample_field(nests, sites)
    is_lymphocyte = sample_field(lymphocytes, sites) * 0.8
    rest = 1.0 - is_lymphocyte
    probability = np.stack(
        [
            rest * is_tumour * (1.0 - is_b) * 0.85,
            rest * is_tumour * is_b * 0.85,
            is_lymphocyte,
            rest * (1.0 - is_tumour) * 0.5,
        ],
        axis=1,
    )
    draw = rng.random(len(sites))[:, None]
    cell_type = (draw > np.cumsum(probability, axis=1)).sum(axis=1)
    present = cell_type < len(CELL_TYPES)
    return Tissue(size_um, sites[present], cell_type[present], outline, tumour)


def _random_field(rng: np.random.Generator, grid: int, length_um: float) -> NDArray[np.float64]:
    """(grid, grid) smooth Gaussian field of mean 0 and variance 1 over the grid."""
    field = gaussian_filter(rng.standard_normal((grid, grid)), length_um / _GRID_UM, mode="wrap")
    scaled: NDArray[np.float64] = (field - field.mean()) / field.std()
    return scaled


def _outline(rng: np.random.Generator, grid: int) -> NDArray[np.float64]:
    """(grid, grid) field that is positive inside one rounded piece of tissue."""
    axis = (np.arange(grid) + 0.5) / grid * 2.0 - 1.0
    radius = np.hypot(axis[None, :], axis[:, None])
    field: NDArray[np.float64] = 0.93 - radius + 0.06 * _random_field(rng, grid, grid * _GRID_UM / 12)
    return field


def _sites(rng: np.random.Generator, size_um: float) -> NDArray[np.float64]:
    """(s, 2) jittered square lattice over the section, in micrometres."""
    ticks = np.arange(_SITE_UM / 2, size_um, _SITE_UM)
    lattice = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    jittered: NDArray[np.float64] = np.clip(
        lattice + rng.normal(0.0, _SITE_UM / 5, lattice.shape), 0.0, size_um - 1e-6
    )
    return jittered


_GLASS = (242, 241, 244)
_STROMA = (233, 170, 200)
_EPITHELIUM = (214, 158, 205)
_STEP = [0] * 128 + [255] * 128

# Per cell type: nucleus colour, long and short radius in um.
_NUCLEI: tuple[tuple[tuple[int, int, int], float, float], ...] = (
    ((112, 70, 150), 5.2, 4.2),  # tumour a: large, purple
    ((160, 122, 190), 6.4, 5.4),  # tumour b: larger, pale, with a nucleolus
    ((58, 40, 112), 3.4, 3.2),  # lymphocyte: small, dark, round
    ((104, 66, 138), 7.5, 1.9),  # fibroblast: a spindle
)


def paint_tissue(rng: np.random.Generator, tissue: Tissue, mpp: float) -> Image.Image:
    """Return the section as an RGB picture at `mpp` micrometres per pixel."""
    side = round(tissue.size_um / mpp)
    canvas = _background(rng, tissue, side)
    _draw_nuclei(rng, ImageDraw.Draw(canvas), tissue, mpp)
    canvas = canvas.filter(ImageFilter.GaussianBlur(0.6))
    return _stain(rng, canvas)


def _background(rng: np.random.Generator, tissue: Tissue, side: int) -> Image.Image:
    """Cytoplasm, fibres and glass, without nuclei, as a (side, side) RGB picture."""
    fibres = _texture(rng, (side // 24, side // 3), side)
    grain = _texture(rng, (side // 5, side // 5), side)
    stroma = _tinted(fibres, _STROMA, contrast=11.0)
    epithelium = _tinted(grain, _EPITHELIUM, contrast=6.0)
    tumour = _enlarged(tissue.tumour * 255.0, side)
    tissue_colour = Image.composite(epithelium, stroma, tumour)
    inside = _enlarged(np.where(tissue.outline > 0, 255.0, 0.0), side).point(_STEP)
    return Image.composite(tissue_colour, Image.new("RGB", (side, side), _GLASS), inside)


def _enlarged(field: NDArray[np.float64], side: int) -> Image.Image:
    """A field of 0 to 255 as a grey (side, side) picture."""
    grey = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    return grey.resize((side, side), Image.Resampling.BICUBIC)


def _texture(rng: np.random.Generator, shape: tuple[int, int], side: int) -> Image.Image:
    """Smooth noise as a grey picture: 128 is its mean, 40 its standard deviation."""
    return _enlarged(128.0 + 40.0 * rng.standard_normal(shape), side)


def _tinted(texture: Image.Image, colour: tuple[int, int, int], contrast: float) -> Image.Image:
    """Colour a texture: `contrast` is the standard deviation of each channel."""
    grey = (np.arange(256.0) - 128.0) / 40.0
    channels = [texture.point(_lookup(tone + contrast * grey)) for tone in colour]
    return Image.merge("RGB", channels)


def _lookup(values: NDArray[np.float64]) -> list[int]:
    return [int(value) for value in np.clip(values, 0, 255)]


def _draw_nuclei(rng: np.random.Generator, draw: ImageDraw.ImageDraw, tissue: Tissue, mpp: float) -> None:
    size = rng.lognormal(0.0, 0.10, len(tissue.xy_um))
    angle = rng.uniform(0.0, np.pi, len(tissue.xy_um))
    shade = rng.normal(0.0, 9.0, len(tissue.xy_um))
    turns = np.linspace(0.0, 2.0 * np.pi, 10, endpoint=False)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    for (x, y), kind, scale, theta, tone in zip(
        (tissue.xy_um / mpp).tolist(),
        tissue.cell_type.tolist(),
        size.tolist(),
        angle.tolist(),
        shade.tolist(),
        strict=True,
    ):
        colour, long_um, short_um = _NUCLEI[kind]
        ellipse = circle * (long_um * scale / mpp, short_um * scale / mpp)
        turn = np.array([[np.cos(theta), np.sin(theta)], [-np.sin(theta), np.cos(theta)]])
        outline = ellipse @ turn + (x, y)
        red, green, blue = (min(max(int(c + tone), 0), 255) for c in colour)
        draw.polygon(outline.ravel().tolist(), fill=(red, green, blue))
        if kind == 1:
            r = 1.3 * scale / mpp
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(92, 44, 128))


def _stain(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Vary the strength of the stain from section to section, a little."""
    grey = np.arange(256.0)
    strength = rng.normal(1.0, 0.03, 3)
    return image.point([v for s in strength for v in _lookup(255.0 - (255.0 - grey) * s)])
