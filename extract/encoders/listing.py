"""What of the encoders can be used on this machine: no model is built, and torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmap_st.errors import EncoderError
from mmap_st.extract.encoders.models import CustomModel, RemoteCodeModel
from mmap_st.extract.encoders.registry import HUB_PREFIX, TIMM_PREFIX, encoder_spec, known_encoders
from mmap_st.extract.encoders.requirements import missing_package
from mmap_st.extract.encoders.spec import EncoderSpec
from mmap_st.extract.encoders.user import installed_encoders
from mmap_st.extract.encoders.weights import find_weights, no_weights, read_configuration


@dataclass(frozen=True)
class ListedEncoder:
    """An encoder, and whether it can be used here.

    Attributes
    ----------
    spec
        What it is.
    weights
        Where its weights are; None where they are not here.
    missing
        What is missing, in words; empty for an encoder that is ready.
    """

    spec: EncoderSpec
    weights: Path | None
    missing: str

    @property
    def ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def as_json(self) -> dict[str, Any]:
        """All that is known of it, with plain values."""
        spec = self.spec
        return {
            "name": spec.name,
            "ready": self.ready,
            "missing": self.missing or None,
            "weights": None if self.weights is None else str(self.weights),
            "to_get_it": _to_get_it(self),
            "runs_code_of_its_repository": isinstance(spec.model, RemoteCodeModel),
            "hub": None if spec.hub is None else spec.hub.repo,
            "gated": spec.gated,
            "licence": spec.licence,
            "commercial": spec.commercial,
            "input_px": spec.input_px,
            "patch_px": spec.patch_px,
            "width": spec.width,
            "parameters_m": spec.parameters_m,
            "gflops": spec.gflops,
            "recommended_mpp": list(spec.mpps),
            "precision": spec.precision,
            "pooling": str(spec.pooling),
            "preprocessing": str(spec.preprocessing),
            "mean": list(spec.preprocessing.mean),
            "std": list(spec.preprocessing.std),
            "citation": spec.citation,
            "source": spec.source,
            "note": spec.note,
        }


def list_encoders(
    word: str = "", *, ready: bool = False, open_only: bool = False, commercial: bool = False
) -> Iterator[ListedEncoder]:
    """List encoders in the order of their declaration.

    Parameters
    ----------
    word
        Part of the name.
    ready
        Only those that can be used here and now.
    open_only
        Only those for which the hub asks no permission.
    commercial
        Only those whose licence is known to allow commercial use.

    Raises
    ------
    EncoderError
        If the user's configuration cannot be read.
    """
    read_configuration()
    for spec in known_encoders():
        if (
            word.lower() not in spec.name.lower()
            or (open_only and spec.gated)
            or (commercial and not spec.commercial)
        ):
            continue
        try:
            found = _look(spec)
        except EncoderError as error:  # one wrong path in the configuration hides no other encoder
            found = ListedEncoder(spec, None, str(error))
        if found.ready or not ready:
            yield found


def _look(spec: EncoderSpec) -> ListedEncoder:
    if isinstance(spec.model, CustomModel) and spec.hub is None:
        return ListedEncoder(spec, None, "")
    weights = find_weights(spec)
    path = None if weights is None else weights[0]
    package = missing_package(spec)
    if package is not None:
        return ListedEncoder(spec, path, f"needs {package[0]}")
    if path is None:
        return ListedEncoder(spec, None, "not fetched yet" if spec.hub else "give --weights")
    return ListedEncoder(spec, path, "")


def look_at(name: str) -> ListedEncoder:
    """One encoder by the name that ``--encoder`` takes; upper and lower case are one.

    Raises
    ------
    EncoderError
        If there is none; it names those that are near.
    """
    return _look(encoder_spec(name if _is_free(name) else name.lower()))


def _is_free(name: str) -> bool:
    """Whether a name is not one of the list's."""
    return name.startswith((TIMM_PREFIX, HUB_PREFIX)) or ".py:" in name or name in installed_encoders().specs


def _to_get_it(encoder: ListedEncoder) -> str | None:
    """What to do for an encoder that is not ready, in one line."""
    spec = encoder.spec
    package = missing_package(spec)
    steps = [] if package is None else [package[1]]
    if encoder.weights is None and spec.hub is None and not encoder.ready:
        steps.append(no_weights(spec))
    elif encoder.weights is None and spec.hub is not None:
        kind = "datasets/" if spec.hub.kind == "dataset" else ""
        if spec.gated:
            steps.append(
                f"ask for access at https://huggingface.co/{kind}{spec.hub.repo}, then `hf auth login`"
            )
        steps.append("the first run fetches its weights")
    if isinstance(spec.model, RemoteCodeModel):
        steps.append("say --trust-remote-code, since it runs code of its hub repository")
    return "; ".join(steps) or None
