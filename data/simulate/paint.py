"""Paint simulated tissue as an H&E-like picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mmap_st.data.simulate.tissue import Tissue

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
