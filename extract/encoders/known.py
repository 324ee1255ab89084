"""A fixed picture, and its embeddings that are known: what `mmap doctor` holds an encoder against."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FILE = "known_embeddings.json"
_SIZE = (301, 271)
#: Grey levels of tissue, of nuclei and of glass, roughly those of H&E.
_STROMA, _NUCLEUS, _GLASS = (226, 158, 190), (92, 60, 130), (243, 241, 244)


def fixed_picture() -> Image.Image:
    """A picture of 301 x 271 px with the colours of H&E, the same on every machine: whole numbers make it."""
    width, height = _SIZE
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    picture = np.empty((height, width, 3), np.int64)
    picture[:] = _STROMA
    picture += ((x * 7 + y * 13 + (x * y) % 31) % 23 - 11)[..., None]
    for number in range(60):
        column, row, radius = (number * 97) % width, (number * 61 + number * number) % height, 5 + number % 7
        inside = (x - column) ** 2 + 2 * (y - row) ** 2 < radius**2
        picture[inside] = np.array(_NUCLEUS) + (number * 5) % 29
    picture[(x + 2 * y) % 400 > 372] = _GLASS
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def known_embedding(encoder: str, weights_sha256: str) -> NDArray[np.float32] | None:
    """The fixed picture's embedding (d,) at fp32 by an encoder with these weights; None if unknown."""
    values = _known().get(encoder, {}).get(weights_sha256)
    return None if values is None else np.array(values, np.float32)


@cache
def _known() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((files(__package__) / _FILE).read_text(encoding="utf-8"))
    return read
