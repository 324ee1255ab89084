"""What of the encoders can be used on this machine: no model is built, and torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmap_st.errors import EncoderError
from mmap_st.extract.encoders.models import CustomModel, PackageModel, RemoteCodeModel, TransformersModel
from mmap_st.extract.encoders.registry import known_encoders
from mmap_st.extract.encoders.spec import EncoderSpec
from mmap_st.extract.encoders.weights import find_weights, read_configuration


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
            "install": spec.model.install if isinstance(spec.model, PackageModel) else None,
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
    if package:
        return ListedEncoder(spec, path, f"needs {package}")
    if path is None:
        return ListedEncoder(
            spec, None, "weights not here" if spec.hub else "weights not here, give --weights"
        )
    return ListedEncoder(spec, path, "")


def missing_package(spec: EncoderSpec) -> str:
    """The package that an encoder needs and that is not installed, or ``""``."""
    match spec.model:
        case TransformersModel() | RemoteCodeModel():
            needed = "transformers"
        case PackageModel(package):
            needed = package
        case _:
            return ""
    if find_spec(needed) is None:
        return needed
    if isinstance(spec.model, PackageModel) and spec.model.adapter == "exaone_path":
        return "" if spec.name in read_configuration().code else "the code of its authors"
    return ""
