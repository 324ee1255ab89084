"""Test an encoder: build it, load it, embed a fixed picture, and compare with the embedding that is known."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmap_st.errors import MmapError, RequestError, first_line
from mmap_st.extract.encoders.build import build_encoder, device_of
from mmap_st.extract.encoders.encoder import Encoder, auto_precision, prepare_picture
from mmap_st.extract.encoders.spec import PRECISIONS, EncoderSpec

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


_LARGEST_DIFFERENCE = 1e-3
_LEAST_COSINE = 0.999
_WINDOWS = 16


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what
        The thing.
    found
        What was found of it.
    trouble
        What is wrong and what to do; empty where all is ok.
    """

    what: str
    found: str
    trouble: str = ""


def examine_encoder(
    spec: EncoderSpec,
    *,
    weights: Path | None = None,
    random_weights: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    trust_remote_code: bool = False,
) -> list[Finding]:
    """Build an encoder, embed a fixed picture twice, and hold the embedding against what is known of it.

    Raises
    ------
    RequestError
        If there is no such device or precision.
    """
    device = device_of(device)
    if precision == "auto":
        precision = auto_precision(spec, device, None)
    if precision not in PRECISIONS:
        raise RequestError(f"There is no precision {precision!r}; give one of auto, {', '.join(PRECISIONS)}.")
    began = time.perf_counter()
    try:
        encoder = build_encoder(
            spec,
            weights=weights,
            random_weights=random_weights,
            device=device,
            precision=precision,
            trust_remote_code=trust_remote_code,
        )
    except MmapError as error:
        return [Finding("builds and loads", "no", str(error))]
    seconds = time.perf_counter() - began
    findings = [
        Finding("builds and loads", f"in {seconds:.1f} s, on {encoder.device} at {precision}"),
        Finding("weights", f"sha256 {encoder.weights_sha256}"),
        Finding("window", f"{spec.input_px} px; {spec.preprocessing}"),
    ]
    try:
        window = _window(spec)
        first, second = encoder.embed(window[None])[0], encoder.embed(window[None])[0]
    except (RuntimeError, MmapError) as error:
        return [*findings, Finding("embeds a picture", "no", f"{first_line(error)}; try another --device.")]
    finite = bool(np.isfinite(first).all())
    findings.append(
        Finding(
            "embeds a picture",
            f"{len(first)} numbers, of length {np.linalg.norm(first):.4g}",
            "" if finite else "some are not finite; try --precision fp32.",
        )
    )
    findings.append(
        Finding(
            "does so again",
            "the same" if np.array_equal(first, second) else "others",
            ""
            if np.array_equal(first, second)
            else "the device gives other numbers for the same input; check its driver.",
        )
    )
    findings.append(_compare(encoder, first))
    windows = np.broadcast_to(window, (min(encoder.step, _WINDOWS), *window.shape)).copy()
    began = time.perf_counter()
    encoder.embed(windows)
    rate = len(windows) / (time.perf_counter() - began)
    findings.append(Finding("speed", f"{rate:.1f} windows/s, {len(windows)} at a time"))
    return findings


def _window(spec: EncoderSpec) -> NDArray[np.uint8]:
    """The fixed picture as the encoder is fed it; scaled where its rule says nothing of size."""
    picture = fixed_picture().crop((0, 0, 271, 271))
    rule = spec.preprocessing
    if rule.resize is None and rule.crop is None:
        picture = picture.resize((spec.input_px, spec.input_px))
    return prepare_picture(picture, spec)


def _compare(encoder: Encoder, embedding: NDArray[np.float32]) -> Finding:
    """Hold an embedding against the known one of these weights."""
    known = known_embedding(encoder.spec.name, encoder.weights_sha256)
    what = "agrees with what is known"
    if known is None:
        return Finding(what, "there is no reference embedding for these weights")
    difference = float(np.linalg.norm(embedding - known) / np.linalg.norm(known))
    cosine = float(embedding @ known / np.linalg.norm(embedding) / np.linalg.norm(known))
    exact = encoder.precision == "fp32"
    good = difference < _LARGEST_DIFFERENCE if exact else cosine > _LEAST_COSINE
    trouble = (
        ""
        if good
        else "the embedding differs from the reference; update torch and timm, or try --device cpu."
    )
    return Finding(what, f"relative difference {difference:.1e}, cosine {cosine:.6f}", trouble)
