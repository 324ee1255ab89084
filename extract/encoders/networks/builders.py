"""Build the network that a spec describes: by timm, by its authors' own package, by code of the hub.

Wang et al. 2022, Medical Image Analysis 81: 3 x 3 with stride 2, twice, each with batch norm and ReLU, to
widths of an eighth and a quarter of the embedding's, then 1 x 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmap_st.data import some
from mmap_st.errors import EncoderError, MmapError, agreeing, counted, first_line
from mmap_st.extract.encoders.checkpoints import fit_state, read_state, sha256_of_tensors
from mmap_st.extract.encoders.networks.pooling import (
    Embedder,
    KeepNetwork,
    ModuleNetwork,
    Output,
    TimmNetwork,
)
from mmap_st.extract.encoders.networks.transformers_models import (
    load_remote,
    load_transformers,
    random_transformers,
)
from mmap_st.extract.encoders.spec import (
    CustomModel,
    EncoderSpec,
    PackageModel,
    RemoteCodeModel,
    TimmModel,
    TransformersModel,
)
from mmap_st.extract.encoders.weights import code_folder
from mmap_st.files import sha256_of_file, sha256_of_json

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
    The network on the CPU in float32, and the hex sha256 of its weights: of the file; with code next to it,
    of that too; without a file, of the tensors.

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
            # A configuration next to the file makes other numbers of the same weights.
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


OPEN_CLIP_CONFIG = "open_clip_config.json"
_EXAONE_TARGET = "macenko_target/target_TCGA-55-A48X_coords_[19440  9824]_[4096 4096].png"


class ConchNetwork(nn.Module):
    """CONCH's picture tower (Lu et al. 2024): the attentional pooler's vector, and the trunk's tokens."""

    def __init__(self, model: nn.Module, proj_contrast: bool) -> None:
        super().__init__()
        self.model = model
        self._proj_contrast = proj_contrast

    def forward(self, images: Tensor, features: bool) -> Output:
        """Embed images (b, 3, px, px)."""
        model: Any = self.model
        own = model.encode_image(images, proj_contrast=self._proj_contrast, normalize=False)
        return own, model.visual.trunk.forward_features(images) if features else None


class MuskNetwork(nn.Module):
    """MUSK's picture tower (Xiang et al. 2025): the class token without projection head, not normalised."""

    def __init__(self, model: nn.Module, ms_aug: bool) -> None:
        super().__init__()
        self.model = model
        self._ms_aug = ms_aug

    def forward(self, images: Tensor, features: bool) -> Output:
        """Embed images (b, 3, px, px)."""
        out = self.model(
            image=images, with_head=False, out_norm=False, ms_aug=self._ms_aug, return_global=True
        )
        return out[0], None


class OpenClipNetwork(nn.Module):
    """The picture tower of an open_clip model: the projected class token."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.model = visual

    def forward(self, images: Tensor, features: bool) -> Output:
        """Embed images (b, 3, px, px)."""
        visual: Any = self.model
        if not features:
            return visual(images), None
        visual.output_tokens = True
        try:
            pooled, tokens = visual(images)
        finally:
            visual.output_tokens = False
        # The class token comes first in every encoder's tokens; open_clip gives the patches alone.
        return pooled, torch.cat([tokens[:, :1], tokens], dim=1)


def conch(spec: EncoderSpec, options: Mapping[str, Any], path: Path) -> nn.Module:
    """CONCH by its package."""
    factory: Any = import_module("conch.open_clip_custom")
    model, _ = factory.create_model_from_pretrained("conch_ViT-B-16", str(path))
    _check_taken(spec, model, path, "visual.")
    return ConchNetwork(model, **options)


def musk(spec: EncoderSpec, options: Mapping[str, Any], path: Path) -> nn.Module:
    """MUSK by its package, whose `modeling` tells timm of it."""
    import timm

    import_module("musk.modeling")
    utilities: Any = import_module("musk.utils")
    model = timm.create_model("musk_large_patch16_384")
    utilities.load_model_and_may_interpolate(str(path), model, "model|module", "")
    _check_taken(spec, model, path, "")
    return MuskNetwork(model, **options)


def open_clip(spec: EncoderSpec, options: Mapping[str, Any], path: Path) -> nn.Module:
    """A picture tower by open_clip, from a folder with its ``open_clip_config.json``."""
    package: Any = import_module("open_clip")
    if not (path.parent / OPEN_CLIP_CONFIG).is_file():
        raise EncoderError(
            f"{spec.name} needs {OPEN_CLIP_CONFIG} next to {path}; copy the whole repository {_repo(spec)}."
        )
    model = package.create_model(f"local-dir:{path.parent}", load_weights=False)
    network = OpenClipNetwork(model.visual)
    tower = {k.removeprefix("visual."): v for k, v in read_state(path).items() if k.startswith("visual.")}
    fit_state(network, tower, spec, path)
    return network


def exaone_path(spec: EncoderSpec, options: Mapping[str, Any], path: Path) -> nn.Module:
    """EXAONEPath: a ViT-B/16 with timm's names, after the stain normalisation of its repository."""
    import timm

    assert isinstance(spec.model, PackageModel)
    folder = code_folder(spec, spec.model.install)
    sys.path.insert(0, str(folder))
    try:
        macenko: Any = import_module("macenko")
    finally:
        sys.path.remove(str(folder))
    network = ModuleNetwork(timm.create_model("vit_base_patch16_224", num_classes=0, global_pool=""))
    fit_state(network, read_state(path), spec, path)
    normaliser = macenko.macenko_normalizer(str(folder / _EXAONE_TARGET))
    network.prepare = _by_picture(normaliser)  # type: ignore[assignment]
    return network


def _by_picture(normaliser: Callable[[Any], Tensor]) -> Callable[[Tensor], Tensor]:
    """Windows (b, px, px, 3) uint8 to images (b, 3, px, px) in [0, 1], one picture at a time."""

    def prepare(windows: Tensor) -> Tensor:
        from PIL import Image

        pictures = [Image.fromarray(window) for window in windows.cpu().numpy()]
        return torch.stack([normaliser(picture).float() for picture in pictures]).to(windows.device)

    return prepare


def _check_taken(spec: EncoderSpec, model: nn.Module, path: Path, prefix: str) -> None:
    """See that a network has the tensors of a file: packages load without complaint what does not fit."""
    state = read_state(path)
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(prefix)}
    lost = [
        key
        for key, tensor in own.items()
        if key not in state
        or state[key].shape != tensor.shape
        or not torch.equal(state[key].to(tensor), tensor)
    ]
    if lost:
        raise EncoderError(
            f"The weights {path} do not fit {spec.name}; {len(lost)} of {counted(len(own), 'tensor')}"
            f" {agreeing(len(lost), 'is', 'are')} not in it, or not the same: {some(sorted(lost))}. Give"
            " weights of this encoder."
        )


def _repo(spec: EncoderSpec) -> str:
    return spec.hub.repo if spec.hub else spec.name


_ADAPTERS: dict[str, Callable[[EncoderSpec, Mapping[str, Any], Path], nn.Module]] = {
    "conch": conch,
    "musk": musk,
    "open_clip": open_clip,
    "exaone_path": exaone_path,
}


def build_by_package(spec: EncoderSpec, model: PackageModel, path: Path) -> nn.Module:
    """Build and load a network by its authors' package.

    Raises
    ------
    EncoderError
        If the package fails, or the weights do not fit.
    """
    try:
        return _ADAPTERS[model.adapter](spec, model.options, path)
    except MmapError:
        raise
    except Exception as error:  # of many kinds: it is others' code
        raise EncoderError(
            f"{spec.name} cannot be built by {model.package} from {path}"
            f" ({type(error).__name__}: {first_line(error)}); copy its files again, or {model.install}."
        ) from error


class ConvolutionStem(nn.Module):
    """What timm's Swin takes as its `embed_layer`."""

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        norm_layer: Any,
        **_: Any,
    ) -> None:
        super().__init__()
        assert patch_size == 4, "two strides of two"
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // patch_size, width // patch_size)
        widths = (embed_dim // 8, embed_dim // 4)
        layers: list[nn.Module] = []
        for before, after in ((in_chans, widths[0]), widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(widths[1], embed_dim, 1)]
        self.proj = nn.Sequential(*layers)
        self.norm = norm_layer(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (b, 3, px, px) as (b, px / 4, px / 4, d)."""
        patches: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return patches
