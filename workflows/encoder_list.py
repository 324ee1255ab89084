"""The encoders that can be named, and one of them built."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mmap_st.extract.encoders import Encoder, auto_precision, device_of, listed_encoders
from mmap_st.extract.encoders import build_encoder as build_from_spec
from mmap_st.workflows.arguments import EncoderLike, spec_of

_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "name": pl.String,
    "ready": pl.Boolean,
    "missing": pl.String,
    "gated": pl.Boolean,
    "licence": pl.String,
    "commercial": pl.Boolean,
    "width": pl.Int64,
    "input_px": pl.Int64,
    "recommended_mpp": pl.List(pl.Float64),
    "parameters_m": pl.Float64,
    "gflops": pl.Float64,
    "precision": pl.String,
    "pooling": pl.String,
    "preprocessing": pl.String,
    "hub": pl.String,
    "weights": pl.String,
    "to_get_it": pl.String,
    "citation": pl.String,
    "source": pl.String,
    "note": pl.String,
}


def list_encoders(
    word: str = "", *, ready: bool = False, open_only: bool = False, commercial: bool = False
) -> pl.DataFrame:
    """List the available encoders.

    Parameters
    ----------
    word
        Part of the name.
    ready
        Only those that can be used here and now.
    open_only
        Leave out those for which the hub asks permission.
    commercial
        Only those whose licence is known to allow commercial use.

    Returns
    -------
    One row per encoder: ``name``; ``ready``, and what is ``missing`` where it is not; ``gated``, ``licence``
    and ``commercial``; ``width`` d of an embedding; ``input_px``, the side of a window; ``recommended_mpp``
    in micrometres per pixel; ``parameters_m`` in millions; ``gflops`` per window; and more. Null: not known.

    Raises
    ------
    EncoderError
        If your configuration of weights cannot be read.

    See Also
    --------
    build_encoder : also takes ``timm:NAME``, ``hf-hub:ORG/NAME`` and ``FILE.py:FUNCTION``.

    Examples
    --------
    >>> mm.list_encoders("efficientnet").select("name", "width", "input_px").rows()
    [('efficientnet-lite0', 1280, 224)]
    """
    listed = listed_encoders(word, ready=ready, open_only=open_only, commercial=commercial)
    rows = [{key: encoder.as_json()[key] for key in _COLUMNS} for encoder in listed]
    return pl.DataFrame(rows, schema=_COLUMNS)


def build_encoder(
    encoder: EncoderLike,
    *,
    weights: str | Path | None = None,
    random_weights: bool = False,
    trust_remote_code: bool = False,
    input_px: int | None = None,
    tokens: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
) -> Encoder:
    """Build an encoder that embeds arrays of windows.

    Parameters
    ----------
    encoder
        By name (`list_encoders`), ``timm:NAME``, ``hf-hub:ORG/NAME``, ``FILE.py:FUNCTION``, or a spec.
    weights
        File or folder of its weights. None: those that are configured, cached or fetched.
    random_weights
        Take random weights, the same each time, to try an encoder without its own.
    trust_remote_code
        Run code that the encoder's hub repository carries.
    input_px
        Side of the windows in pixels, for encoders that take other sizes than their default.
    tokens
        Side g of a grid of patch tokens to give too; 0: none.
    batch_size
        Windows that a GPU takes at a time. None: 256.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
    precision
        ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 on devices that are fast at it.
    compile
        Let torch compile the network: slower to start, then faster.

    Returns
    -------
    The encoder: ``embed(windows)`` takes (n, input_px, input_px, 3) uint8 RGB windows, which it normalises
    itself, and gives (n, d) float32 embeddings; ``spec.input_px`` and ``width`` say what input_px and d are.

    Raises
    ------
    EncoderError
        If there is no such encoder, or its weights are missing or do not fit.
    RequestError
        If the device, precision or grid of tokens cannot be had.

    Examples
    --------
    >>> import numpy as np
    >>> encoder = mm.build_encoder("efficientnet-lite0", device="cpu")
    >>> windows = np.full((2, 224, 224, 3), 255, np.uint8)
    >>> encoder.embed(windows).shape
    (2, 1280)
    """
    spec = spec_of(encoder)
    if input_px is not None:
        spec = spec.with_input(input_px)
    target = device_of(device)
    return build_from_spec(
        spec,
        weights=None if weights is None else Path(weights),
        random_weights=random_weights,
        device=target,
        precision=auto_precision(spec, target, None) if precision == "auto" else precision,
        batch_size=batch_size,
        compiled=compile,
        tokens=tokens,
        trust_remote_code=trust_remote_code,
    )
