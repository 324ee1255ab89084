"""Scales at which an encoder was trained, and those at which it is used."""

from __future__ import annotations

from collections.abc import Sequence

from mmap_st.extract.encoders.spec import EncoderSpec

#: Windows this many times as fine or coarse as recommended are said to be far from it.
_FAR = 1.5


def note_of_scales(spec: EncoderSpec, mpps: Sequence[float]) -> str | None:
    """Say which windows are far from the scales that an encoder is recommended for; None where none is."""
    if not spec.mpps:
        return None
    far = []
    for mpp in mpps:
        ratio = min((mpp / known for known in spec.mpps), key=lambda ratio: max(ratio, 1 / ratio))
        if max(ratio, 1 / ratio) > _FAR:
            far.append(f"{mpp:g} ({max(ratio, 1 / ratio):.3g} times as {'coarse' if ratio > 1 else 'fine'})")
    if not far:
        return None
    known = " or ".join(f"{mpp:g}" for mpp in spec.mpps)
    return f"{spec.name} is recommended for {known} um/px, and windows are asked for at {', '.join(far)} too"
