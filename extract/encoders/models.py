"""The kinds of networks that there are, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmap_st.errors import RequestError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TimmModel:
    """A network of timm.

    Attributes
    ----------
    arch
        Its name there.
    kwargs
        Further arguments of ``timm.create_model``. The strings ``timm.layers.NAME`` and ``torch.nn.NAME``
        stand for those objects, and ``mmap_st...:NAME`` for one of this package.
    """

    arch: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TransformersModel:
    """A network of the package transformers, built from its configuration.

    Attributes
    ----------
    model, config
        Names of the two classes.
    settings
        Arguments of the configuration; a ``config.json`` beside the weights is taken in their place.
    """

    model: str
    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RemoteCodeModel:
    """A network that transformers builds by code from its hub repository, which the user must agree to run.

    Attributes
    ----------
    output
        ``pooler`` (the output's `pooler_output`), ``direct`` (the output is the embedding) or ``conch`` (the
        vision tower that ``return_conch()`` gives).
    """

    output: str


@dataclass(frozen=True)
class PackageModel:
    """A network of a package of its authors.

    Attributes
    ----------
    package
        The module to import.
    adapter
        Which function of `adapters` builds it.
    options
        Its further arguments.
    install
        The command that installs the package.
    """

    package: str
    adapter: str
    install: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CustomModel:
    """A user's own network.

    Attributes
    ----------
    make
        Makes a module that maps images (b, 3, px, px) float32, normalised, to embeddings (b, d); or, where
        `EncoderSpec.pooling` slices tokens, to tokens (b, n, d).
    code
        What tells this code from other code, such as its sha256: it is part of the recipe.
    """

    make: Callable[[], torch.nn.Module]
    code: str = ""

    def __post_init__(self) -> None:
        """Refuse a network in place of the function that makes one.

        Raises
        ------
        RequestError
            If it is no function.
        """
        is_network = hasattr(self.make, "state_dict") and not isinstance(self.make, type)
        if is_network or not callable(self.make):
            raise RequestError("CustomModel takes the function that makes a network, not a network.")


Model = TimmModel | TransformersModel | RemoteCodeModel | PackageModel | CustomModel


def model_recipe(model: Model) -> dict[str, Any]:
    """What of a network's making changes an embedding."""
    match model:
        case TimmModel(arch, kwargs):
            return {"arch": arch, **({"arch_kwargs": dict(kwargs)} if kwargs else {})}
        case TransformersModel(name, _, settings):
            return {"arch": f"transformers.{name}", "arch_kwargs": dict(settings)}
        case RemoteCodeModel(output):
            return {"arch": "transformers, code of the hub repository", "output": output}
        case PackageModel(package, adapter, _, options):
            return {"arch": f"{package}: {adapter}", **({"arch_kwargs": dict(options)} if options else {})}
        case CustomModel(_, code):
            return {"arch": "custom", "code": code}
