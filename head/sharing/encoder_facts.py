"""What a card says of an encoder: what the head records, and what the catalogue knows of its licence."""

from __future__ import annotations

from collections.abc import Mapping

from mmap_st.extract.encoders import ENCODERS, EncoderSpec
from mmap_st.extract.store import RANDOM, encoder_of, is_imported
from mmap_st.head.sharing.model_card import EncoderFacts


def encoder_facts(
    recipe: Mapping[str, object],
    mpps: tuple[float, ...],
    precisions: tuple[str, ...] | None,
    tokens: int = 0,
) -> EncoderFacts:
    """Facts of the encoder that a head takes embeddings of; no code of an encoder is loaded.

    Parameters
    ----------
    recipe
        What of the embeddings' recipe the head depends on.
    mpps, precisions, tokens
        See `EncoderFacts`.
    """
    encoder, weights = recipe.get("encoder"), recipe.get("weights_sha256")
    assert isinstance(encoder, Mapping)
    name, input_px = encoder_of(recipe), encoder.get("input_px")
    spec = _in_catalogue(name, encoder, imported=is_imported(recipe))
    is_random = isinstance(weights, str) and weights.startswith(RANDOM)
    return EncoderFacts(
        name=name,
        weights_sha256=weights if isinstance(weights, str) else None,
        mpps=mpps,
        input_px=input_px if isinstance(input_px, int) else None,
        own_input_px=None if spec is None else spec.input_px,
        tokens=tokens,
        precisions=precisions,
        imported=is_imported(recipe),
        random=is_random,
        licence=None if spec is None or is_random else spec.licence or None,
        commercial=None if spec is None or is_random else spec.commercial,
        gated=None if spec is None or is_random else spec.gated,
        hub=None if spec is None or spec.hub is None or is_random else spec.hub.repo,
        citation=None if spec is None or is_random else spec.citation or None,
    )


def _in_catalogue(name: str, encoder: Mapping[str, object], *, imported: bool) -> EncoderSpec | None:
    """The encoder of this name, if it is that one: somebody's own may have the name of another."""
    spec = ENCODERS.get(name)
    if spec is None or imported:
        return spec
    declared = spec.recipe()
    return spec if all(encoder.get(key) == declared.get(key) for key in ("arch", "output")) else None
