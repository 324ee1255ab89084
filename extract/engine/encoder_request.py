"""Which encoder a run is to embed with, and building it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmap_st.errors import RecipeMismatchError
from mmap_st.extract.encoders import Encoder, EncoderSpec, auto_precision, build_encoder, device_of
from mmap_st.extract.engine.planning import ExtractOptions, run_recipe, stored_precision, stored_tokens
from mmap_st.extract.store import FeatureStore, Recipe, differences, head_part


@dataclass(frozen=True)
class EncoderRequest:
    """Which encoder to build, and how; see `build_encoder`.

    Attributes
    ----------
    device, precision
        May be ``auto``; `device` may name several, see `devices_of`.
    tokens
        Side of the grid of tokens to keep; None: what the store has of this encoder.
    expected
        What its recipe must say of the encoder and its weights, since a head was trained with them; None:
        anything.
    """

    spec: EncoderSpec
    weights: Path | None = None
    random_weights: bool = False
    device: str = "auto"
    precision: str = "auto"
    compiled: bool = False
    tokens: int | None = None
    trust_remote_code: bool = False
    expected: Recipe | None = None


def build_requested(request: EncoderRequest, store: FeatureStore | None, options: ExtractOptions) -> Encoder:
    """Build the encoder; its precision and tokens are the store's, where it has some of it.

    Raises
    ------
    RequestError
        If it cannot be had.
    """
    device, precision = device_of(request.device), request.precision
    if precision == "auto":
        stored = stored_precision(store, request.spec.name) if store is not None else None
        precision = auto_precision(request.spec, device, stored)
    tokens = request.tokens
    if tokens is None:
        tokens = stored_tokens(store, request.spec.name) if store is not None else 0
    return build_encoder(
        request.spec,
        weights=request.weights,
        random_weights=request.random_weights,
        device=device,
        precision=precision,
        batch_size=options.batch_size,
        compiled=request.compiled,
        tokens=tokens,
        trust_remote_code=request.trust_remote_code,
    )


def check_encoder(request: EncoderRequest, options: ExtractOptions) -> None:
    """Build an encoder, and refuse it where `extract_cohort` would.

    Raises
    ------
    RequestError
        If it cannot be had, or is not the one that was expected.
    """
    check_expected(request, run_recipe(build_requested(request, None, options), options.tissue_min))


def check_expected(request: EncoderRequest, shared: Recipe) -> None:
    """Refuse weights that are not those that a head was trained with, before any image is opened.

    Raises
    ------
    RecipeMismatchError
        Naming the differences.
    """
    different = [] if request.expected is None else differences(request.expected, head_part(shared))
    if different:
        raise RecipeMismatchError(
            f"{request.spec.name} as it is here is not what the head was trained with"
            f" ({'; '.join(different)}); give --weights with the weights that it was trained with."
        )
