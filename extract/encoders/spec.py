"""What an encoder is, as data: network, preprocessing, pooling; nothing here builds one or needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmap_st.errors import RequestError

if TYPE_CHECKING:
    import torch
from dataclasses import replace


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
    kwargs: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class TransformersModel:
    """A network of the package transformers, built from its configuration.

    Attributes
    ----------
    model, config
        Names of the two classes.
    settings
        Arguments of the configuration; a ``config.json`` next to the weights is taken in their place.
    """

    model: str
    config: str
    settings: Mapping[str, object] = field(default_factory=dict)


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
        Which function of `networks/builders.py` builds it.
    options
        Its further arguments.
    install
        The command that installs the package.
    """

    package: str
    adapter: str
    install: str
    options: Mapping[str, object] = field(default_factory=dict)


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
            If it is not a function.
        """
        is_network = hasattr(self.make, "state_dict") and not isinstance(self.make, type)
        if is_network or not callable(self.make):
            raise RequestError("CustomModel takes the function that makes a network, not a network.")


Model = TimmModel | TransformersModel | RemoteCodeModel | PackageModel | CustomModel


def model_recipe(model: Model) -> dict[str, object]:
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


PRECISIONS = ("fp32", "bf16", "fp16")
POOLINGS = ("cls", "cls+mean_patch", "mean_patch", "map", "own")

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Pooling:
    """How what a network gives becomes one embedding.

    Attributes
    ----------
    kind
        ``cls``: the class token. ``cls+mean_patch``: the class token and the mean of the patch tokens, one
        after the other. ``mean_patch``: that mean. ``map``: the mean over the last feature map. ``own``:
        what the network itself gives.
    prefix
        Tokens before the patches: the class token and the registers.
    text
        In words, for the kinds ``map`` and ``own``.
    """

    kind: str
    prefix: int = 1
    text: str = ""

    def __post_init__(self) -> None:
        """Refuse an unknown pooling.

        Raises
        ------
        RequestError
            Naming the known ones.
        """
        if self.kind not in POOLINGS:
            raise RequestError(f"There is no pooling {self.kind!r}; give one of {', '.join(POOLINGS)}.")

    def __str__(self) -> str:
        """The exact slices."""
        patches = f"x[:, {self.prefix}:].mean(1)"
        return {
            "cls": "cls: x[:, 0]",
            "mean_patch": f"mean_patch: {patches}",
            "cls+mean_patch": f"cls+mean_patch: cat(x[:, 0], {patches})",
        }.get(self.kind, self.text)


@dataclass(frozen=True)
class Preprocessing:
    """How the authors feed a picture to the network.

    Windows are cut at `EncoderSpec.input_px` and at their mpp: they are what is left of a tile after the
    resizing and cropping, and only normalised. Pictures of other sizes go through all of it
    (`encoder.prepare_picture`).

    Attributes
    ----------
    mean, std
        Of RGB in [0, 1], subtracted and divided by.
    resize
        Length that the shorter side is resized to, or both where `exact`; None: not resized.
    crop
        Side of the square that is cut from the middle; None: not cropped.
    interpolation
        ``bilinear`` or ``bicubic``, with antialiasing.
    stain
        A stain normalisation that comes first, by name.
    """

    mean: Rgb
    std: Rgb
    resize: int | None = None
    exact: bool = False
    crop: int | None = None
    interpolation: str = "bicubic"
    stain: str | None = None

    def __str__(self) -> str:
        """The rule in torchvision's words."""
        steps = [f"{self.stain} stain normalisation"] if self.stain else []
        if self.resize is not None:
            size = f"({self.resize}, {self.resize})" if self.exact else f"{self.resize}"
            steps.append(f"Resize({size}, {self.interpolation})")
        if self.crop is not None:
            steps.append(f"CenterCrop({self.crop})")
        return ", ".join([*steps, f"mean {self.mean}, std {self.std}"])


@dataclass(frozen=True)
class Hub:
    """Where the weights are on the Hugging Face hub.

    Attributes
    ----------
    repo
        ``ORG/NAME``.
    files
        Names that the weights may have there, in order.
    beside
        Further files that building needs, such as ``config.json``.
    kind
        ``model`` or ``dataset``.
    """

    repo: str
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    beside: tuple[str, ...] = ()
    kind: str = "model"


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder before its weights are loaded.

    Attributes
    ----------
    name
        What users call it, and its name in a store; a variant is ``NAME:VARIANT``.
    model
        How the network is built, without the hub.
    input_px
        Side of the windows that it takes, in pixels.
    preprocessing, pooling
        How it is fed, and how its output becomes one embedding.
    width
        Length of the embedding; None: known when it is built.
    patch_px
        Side of a patch; 1 for networks that take any size.
    flexible
        Whether it takes windows of another size (a multiple of `patch_px`).
    hub
        Where its weights are; None: nowhere on the hub.
    layout
        Name of the function that renames the tensors of its published file, in
        `mmap_st.extract.encoders.checkpoints`; None: they fit as they are.
    drops
        Beginnings of the names of published tensors that the encoder does without.
    parameters_m, gflops
        Millions of parameters, and 10^9 operations (two a multiply-add) for one window.
    mpps
        um/px that its makers, or toolkits, recommend; empty where none.
    precision
        What its makers, toolkits or measurements here recommend on devices that are fast at it; None: bf16.
    licence
        Terms of the weights.
    commercial
        Whether they allow commercial use; None where it is not stated.
    gated
        Whether the hub asks for permission first; None where it is not known.
    citation
        Where it was published.
    source
        Where the weights are from.
    note
        What toolkits disagree on, and what was chosen.
    """

    name: str
    model: Model
    input_px: int
    preprocessing: Preprocessing
    pooling: Pooling
    width: int | None = None
    patch_px: int = 1
    flexible: bool = False
    hub: Hub | None = None
    layout: str | None = None
    drops: tuple[str, ...] = ()
    parameters_m: float | None = None
    gflops: float | None = None
    mpps: tuple[float, ...] = ()
    precision: str | None = None
    licence: str = ""
    commercial: bool | None = None
    gated: bool | None = None
    citation: str = ""
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises
        ------
        RequestError
            If the windows are not whole patches.
        """
        if self.input_px < 1 or self.input_px % self.patch_px:
            raise RequestError(
                f"{self.name} takes windows whose side is a multiple of {self.patch_px} px,"
                f" not {self.input_px} px."
            )

    def variant(self, name: str, **changes: Any) -> EncoderSpec:
        """The same encoder but for `changes`, called ``NAME:name``."""
        return replace(self, name=f"{self.name}:{name}", **changes)

    def with_input(self, input_px: int) -> EncoderSpec:
        """The same encoder on windows of another size.

        Raises
        ------
        RequestError
            If it does not take them.
        """
        if input_px == self.input_px:
            return self
        if not self.flexible:
            raise RequestError(f"{self.name} takes windows of {self.input_px} px and no others.")
        rule = self.preprocessing
        resize, crop = (
            None if side is None else round(side * input_px / self.input_px)
            for side in (rule.resize, rule.crop)
        )
        return replace(
            self, input_px=input_px, gflops=None, preprocessing=replace(rule, resize=resize, crop=crop)
        )

    def recipe(self) -> dict[str, object]:
        """What of the encoder changes an embedding, weights apart."""
        preprocessing: dict[str, Any] = {
            "mean": list(self.preprocessing.mean),
            "std": list(self.preprocessing.std),
            "scale": "1/255",
        }
        if self.preprocessing.stain:
            preprocessing["stain"] = self.preprocessing.stain
        return {
            "name": self.name,
            **model_recipe(self.model),
            "pooling": str(self.pooling),
            "preprocessing": preprocessing,
            "input_px": self.input_px,
        }


IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
INCEPTION: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}

#: Resize(224), CenterCrop(224).
IMAGENET_224 = Preprocessing(**IMAGENET, resize=224, crop=224, interpolation="bilinear")

PACKED_SWIGLU = {"mlp_layer": "timm.layers.SwiGLUPacked", "act_layer": "torch.nn.SiLU"}

NON_COMMERCIAL = "CC-BY-NC-ND-4.0"


#: What building by a repository's own code needs.
WITH_CODE = ("config.json", "*.py")
