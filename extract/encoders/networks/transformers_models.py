"""Networks of the package transformers: its own, and those of code that hub repositories carry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmap_st.data import some
from mmap_st.errors import EncoderError, counted, first_line
from mmap_st.extract.encoders.checkpoints import fit_state, read_state
from mmap_st.extract.encoders.networks.pooling import ModuleNetwork, TransformersNetwork
from mmap_st.extract.encoders.spec import EncoderSpec, TransformersModel
from mmap_st.extract.encoders.weights import check_requirements

#: Parts of a configuration that say who made it, not what it makes.
_SAYS_NOTHING = (
    "transformers_version",
    "architectures",
    "_name_or_path",
    "dtype",
    "torch_dtype",
)


def random_transformers(spec: EncoderSpec, model: TransformersModel) -> nn.Module:
    """The network of a configuration, with random weights."""
    classes = _transformers(spec)
    config = getattr(classes, model.config)(**model.settings)
    return TransformersNetwork(getattr(classes, model.model)(config, **_poolerless(model)))


def _transformers(spec: EncoderSpec) -> Any:
    check_requirements(spec, trust_remote_code=True)
    return import_module("transformers")


def _poolerless(model: TransformersModel) -> dict[str, Any]:
    # A ViT of transformers has a layer on its class token that these encoders do without.
    return {"add_pooling_layer": False} if model.model == "ViTModel" else {}


def load_transformers(
    spec: EncoderSpec, model: TransformersModel, path: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """Load by transformers itself, which knows the names in published files; check that all fitted.

    Returns
    -------
    The network, and what of a ``config.json`` next to the file differs from the declared configuration.

    Raises
    ------
    EncoderError
        If the configuration is none of the encoder's, or the weights do not fit.
    """
    classes = _transformers(spec)
    config_class = getattr(classes, model.config)
    declared = config = config_class(**model.settings)
    if (path.parent / "config.json").is_file():
        try:
            config = config_class.from_pretrained(path.parent)
        except Exception as error:  # of many kinds, by what is wrong with it
            raise EncoderError(
                f"{path.parent / 'config.json'} is not a configuration of {spec.name} ({first_line(error)});"
                " copy the repository again, or the weights alone."
            ) from error
    state = {k: v for k, v in read_state(path).items() if not (spec.drops and k.startswith(spec.drops))}
    with _quietly(classes):
        built, report = getattr(classes, model.model).from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,  # not the configuration's: it would round the weights
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **_poolerless(model),
        )
    _check_report(spec, path, report)
    return TransformersNetwork(built), _changes(declared.to_dict(), config.to_dict())


def _changes(declared: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    return {
        key: found.get(key)
        for key in sorted(declared.keys() | found.keys())
        if key not in _SAYS_NOTHING and found.get(key) != declared.get(key)
    }


def _check_report(spec: EncoderSpec, path: Path, report: Any) -> None:
    problems = [
        f"{counted(len(report[key]), f'tensor {one}', f'tensors {many}')}:"
        f" {some(sorted(map(_key, report[key])))}"
        for key, one, many in (
            ("missing_keys", "is missing", "are missing"),
            ("unexpected_keys", "is not the model's", "are not the model's"),
            ("mismatched_keys", "has another shape", "have another shape"),
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


def load_remote(spec: EncoderSpec, output: str, path: Path) -> nn.Module:
    """Build by the code next to a file of weights, which the user has agreed to run; load that file.

    Raises
    ------
    EncoderError
        If it does not build, or the weights do not fit.
    """
    classes = _transformers(spec)
    repository = spec.hub.repo if spec.hub else spec.name
    try:
        named = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))["auto_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(
            f"{spec.name} needs config.json and code next to {path}; copy the whole repository {repository}."
        ) from error
    if any("--" in str(name) for name in named):
        raise EncoderError(f"{path.parent / 'config.json'} runs code of another repository; copy it there.")
    with _quietly(classes):
        try:
            config = classes.AutoConfig.from_pretrained(path.parent, trust_remote_code=True)
            model = classes.AutoModel.from_config(config, trust_remote_code=True, dtype=torch.float32)
        except Exception as error:  # of many kinds: it is others' code
            raise EncoderError(
                f"{spec.name} cannot be built by the code next to {path}"
                f" ({type(error).__name__}: {first_line(error)}); another version of transformers may help."
            ) from error
    fit_state(ModuleNetwork(model), read_state(path), spec, path)
    if output == "conch":
        model, _ = model.return_conch()
    return TransformersNetwork(model) if output == "pooler" else ModuleNetwork(model)


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
