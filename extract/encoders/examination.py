"""Examine an encoder: build it, load it, embed a picture, hold that against what is known."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import MmapError, RequestError, first_line
from mmap_st.extract.encoders.build import build_encoder, device_of
from mmap_st.extract.encoders.encoder import Encoder
from mmap_st.extract.encoders.known import fixed_picture, known_embedding
from mmap_st.extract.encoders.precision import auto_precision
from mmap_st.extract.encoders.prepare import prepare_picture
from mmap_st.extract.encoders.spec import PRECISIONS, EncoderSpec

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
        What is wrong and what to do; empty where all is well.
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
            "" if np.array_equal(first, second) else "the device does not repeat itself; see its driver.",
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
        return Finding(what, "nothing is known of these weights")
    difference = float(np.linalg.norm(embedding - known) / np.linalg.norm(known))
    cosine = float(embedding @ known / np.linalg.norm(embedding) / np.linalg.norm(known))
    exact = encoder.precision == "fp32"
    good = difference < _LARGEST_DIFFERENCE if exact else cosine > _LEAST_COSINE
    trouble = (
        "" if good else "these are other numbers than elsewhere; update torch and timm, or try --device cpu."
    )
    return Finding(what, f"relative difference {difference:.1e}, cosine {cosine:.6f}", trouble)
