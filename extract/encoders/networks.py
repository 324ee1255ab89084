"""Build the network that a spec describes, with random weights or its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmap_st.errors import EncoderError, MmapError, first_line
from mmap_st.extract.encoders.adapters import OPEN_CLIP_CONFIG, build_by_package
from mmap_st.extract.encoders.hugging import load_remote, load_transformers, random_transformers
from mmap_st.extract.encoders.models import (
    CustomModel,
    PackageModel,
    RemoteCodeModel,
    TimmModel,
    TransformersModel,
)
from mmap_st.extract.encoders.network import Embedder, KeepNetwork, ModuleNetwork, TimmNetwork
from mmap_st.extract.encoders.spec import EncoderSpec
from mmap_st.extract.encoders.state import fit_state, read_state, sha256_of_file, sha256_of_tensors
from mmap_st.extract.recipe_json import sha256_of_json

#: Strings of `TimmModel.kwargs` that begin so stand for objects.
_OBJECTS = ("timm.", "torch.", "mmap_st.")
_RANDOM_SEED = 0


def build_random(spec: EncoderSpec) -> Embedder:
    """The network of a spec with random weights, the same each time.

    Raises
    ------
    EncoderError
        If it cannot be built without its authors' package or files.
    MissingDependencyError
        If it needs a package that is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        match spec.model:
            case TimmModel():
                network = _timm_network(spec, spec.model)
            case TransformersModel():
                network = random_transformers(spec, spec.model)
            case CustomModel(make, _):
                with own_failures(spec):
                    network = ModuleNetwork(make())
            case PackageModel() | RemoteCodeModel():
                raise EncoderError(
                    f"{spec.name} is built by its authors' code and weights together; --random-weights has"
                    " nothing to build."
                )
    return Embedder(network.eval().requires_grad_(False), spec.pooling)


def build_with_weights(spec: EncoderSpec, path: Path | None) -> tuple[Embedder, str]:
    """The network of a spec with the weights of a file, and what names them.

    Parameters
    ----------
    path
        The weights; None for a user's network that brings its own.

    Returns
    -------
    The network on the CPU in float32, and the hex sha256 of its weights: of the file; with code beside it, of
    that too; without a file, of the tensors.

    Raises
    ------
    EncoderError, MissingDependencyError
        If it cannot be built, or the weights do not fit.
    """
    if path is None:
        embedder = build_random(spec)
        return embedder, sha256_of_tensors(embedder.state_dict())
    digest = sha256_of_file(path)
    match spec.model:
        case TimmModel() | CustomModel():
            embedder = build_random(spec)
            assert isinstance(embedder.network, nn.Module)
            fit_state(embedder.network, read_state(path), spec, path)
            return embedder, digest
        case TransformersModel():
            network, changes = load_transformers(spec, spec.model, path)
            # A configuration beside the file makes other numbers of the same weights.
            digest = _sha256_of_both(digest, changes) if changes else digest
        case RemoteCodeModel(output):
            network = load_remote(spec, output, path)
            code = [*sorted(path.parent.glob("*.py")), path.parent / "config.json"]
            digest = _sha256_of_both(digest, {file.name: sha256_of_file(file) for file in code})
        case PackageModel(package="open_clip"):
            network = build_by_package(spec, spec.model, path)
            beside = json.loads((path.parent / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
            digest = _sha256_of_both(digest, beside["model_cfg"])
        case PackageModel():
            network = build_by_package(spec, spec.model, path)
    return Embedder(network.eval().requires_grad_(False).float(), spec.pooling), digest


def _sha256_of_both(weights: str, beside: Any) -> str:
    """What names weights together with what else makes their numbers."""
    return sha256_of_json([weights, beside])


@contextmanager
def own_failures(spec: EncoderSpec) -> Iterator[None]:
    """Turn what others' code raises, whatever it is, into one sentence about the encoder."""
    try:
        yield
    except MmapError:
        raise
    except Exception as error:
        raise EncoderError(
            f"{spec.name} cannot be built ({type(error).__name__}: {first_line(error)}); look at its code and"
            " files, and at the versions of timm, torch and its packages."
        ) from error


def _timm_network(spec: EncoderSpec, wanted: TimmModel) -> nn.Module:
    import timm

    kwargs = {key: _object(value) for key, value in wanted.kwargs.items()}
    if not kwargs.get("features_only"):
        kwargs["num_classes"] = 0
    with own_failures(spec):
        model = timm.create_model(wanted.arch, pretrained=False, **kwargs)
    if spec.layout == "keep":
        assert spec.width is not None
        return KeepNetwork(model, spec.width)
    return TimmNetwork(model, own=spec.pooling.kind in ("own", "map"))


def _object(value: Any) -> Any:
    """What a string of a declaration stands for."""
    if not isinstance(value, str) or not value.startswith(_OBJECTS):
        return value
    module, _, name = value.rpartition(":") if ":" in value else value.rpartition(".")
    return getattr(import_module(module), name)
