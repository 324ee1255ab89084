"""Build the network that a spec describes, with random weights or its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmap_st.data.spots import some
from mmap_st.errors import EncoderError, MissingDependencyError, RequestError, first_line
from mmap_st.extract.encoders.adapters import build_by_package
from mmap_st.extract.encoders.models import (
    CustomModel,
    PackageModel,
    RemoteCodeModel,
    TimmModel,
    TransformersModel,
)
from mmap_st.extract.encoders.network import (
    Embedder,
    KeepNetwork,
    ModuleNetwork,
    TimmNetwork,
    TransformersNetwork,
)
from mmap_st.extract.encoders.spec import EncoderSpec
from mmap_st.extract.encoders.state import fit_state, read_state, sha256_of_file, sha256_of_tensors

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
                classes = _transformers(spec)
                config = getattr(classes, spec.model.config)(**spec.model.settings)
                network = TransformersNetwork(
                    getattr(classes, spec.model.model)(config, **_poolerless(spec.model))
                )
            case CustomModel(make, _):
                network = ModuleNetwork(make())
            case PackageModel() | RemoteCodeModel():
                raise EncoderError(
                    f"{spec.name} is built by its authors' code and weights together; --random-weights has"
                    " nothing to build."
                )
    return Embedder(network.eval().requires_grad_(False), spec.pooling)


def build_with_weights(
    spec: EncoderSpec, path: Path | None, *, trust_remote_code: bool
) -> tuple[Embedder, str]:
    """The network of a spec with the weights of a file, and what names them.

    Parameters
    ----------
    path
        The weights; None for a user's network that brings its own.
    trust_remote_code
        Whether the user agrees to run code that a hub repository carries.

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
    match spec.model:
        case TimmModel() | CustomModel():
            embedder = build_random(spec)
            assert isinstance(embedder.network, nn.Module)
            fit_state(embedder.network, read_state(path), spec, path)
            return embedder, sha256_of_file(path)
        case TransformersModel():
            network: nn.Module = _load_transformers(spec, spec.model, path)
            digest = sha256_of_file(path)
        case RemoteCodeModel(output):
            network = _load_remote(spec, output, path, trusted=trust_remote_code)
            digest = _sha256_with_code(path)
        case PackageModel():
            network, digest = build_by_package(spec, spec.model, path), sha256_of_file(path)
    return Embedder(network.eval().requires_grad_(False).float(), spec.pooling), digest


def _timm_network(spec: EncoderSpec, wanted: TimmModel) -> nn.Module:
    import timm

    kwargs = {key: _object(value) for key, value in wanted.kwargs.items()}
    if not kwargs.get("features_only"):
        kwargs["num_classes"] = 0
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


def _transformers(spec: EncoderSpec) -> Any:
    if find_spec("transformers") is None:
        raise MissingDependencyError(
            f"{spec.name} needs the package transformers: pip install 'mmap-st[transformers]'."
        )
    return import_module("transformers")


def _poolerless(model: TransformersModel) -> dict[str, Any]:
    # A ViT of transformers has a layer on its class token that these encoders do without.
    return {"add_pooling_layer": False} if model.model == "ViTModel" else {}


def _load_transformers(spec: EncoderSpec, model: TransformersModel, path: Path) -> nn.Module:
    """Load by transformers itself, which knows the names in published files; check that all fitted."""
    classes = _transformers(spec)
    config_class = getattr(classes, model.config)
    config = config_class(**model.settings)
    if (path.parent / "config.json").is_file():
        try:
            config = config_class.from_pretrained(path.parent)
        except (OSError, ValueError, TypeError) as error:
            raise EncoderError(
                f"{path.parent / 'config.json'} is no configuration of {spec.name} ({first_line(error)});"
                " copy the repository again, or the weights alone."
            ) from error
    state = {k: v for k, v in read_state(path).items() if not (spec.drops and k.startswith(spec.drops))}
    with _quietly(classes):
        built, report = getattr(classes, model.model).from_pretrained(
            None,
            config=config,
            state_dict=state,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **_poolerless(model),
        )
    _check_report(spec, path, report)
    return TransformersNetwork(built)


def _check_report(spec: EncoderSpec, path: Path, report: Any) -> None:
    problems = [
        f"{len(report[key])} tensors {what}: {some(sorted(map(_key, report[key])))}"
        for key, what in (
            ("missing_keys", "are missing"),
            ("unexpected_keys", "are not the model's"),
            ("mismatched_keys", "have another shape"),
        )
        if report[key]
    ]
    if problems:
        raise EncoderError(
            f"The weights {path} do not fit {spec.name}; {'; '.join(problems)}. Give weights of this encoder."
        )


def _key(entry: Any) -> str:
    """Transformers gives a misshapen tensor as its name with both shapes."""
    return entry if isinstance(entry, str) else str(entry[0])


def _load_remote(spec: EncoderSpec, output: str, path: Path, *, trusted: bool) -> nn.Module:
    classes = _transformers(spec)
    if not trusted:
        repository = spec.hub.repo if spec.hub else spec.name
        raise RequestError(
            f"{spec.name} runs code that the hub repository {repository} carries; read it, then say"
            " --trust-remote-code."
        )
    with _quietly(classes):
        try:
            model, report = classes.AutoModel.from_pretrained(
                path.parent, trust_remote_code=True, output_loading_info=True
            )
        except Exception as error:  # of many kinds: it is others' code
            raise EncoderError(
                f"{spec.name} cannot be built by the code beside {path}"
                f" ({type(error).__name__}: {first_line(error)}); it may want another version of"
                " transformers."
            ) from error
    _check_report(spec, path, report)
    if output == "conch":
        model, _ = model.return_conch()
    return TransformersNetwork(model) if output == "pooler" else ModuleNetwork(model)


def _sha256_with_code(path: Path) -> str:
    digest = hashlib.sha256(sha256_of_file(path).encode())
    for file in sorted(path.parent.glob("*.py")):
        digest.update(f"{file.name} {sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


@contextmanager
def _quietly(classes: Any) -> Iterator[None]:
    """Transformers shows bars and reports of its own; what matters of them is in our sentences."""
    logging = classes.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
