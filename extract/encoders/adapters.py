"""Networks that their authors' own packages build; each is imported only where it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmap_st.data.spots import some
from mmap_st.errors import EncoderError, MmapError, first_line
from mmap_st.extract.encoders.models import PackageModel
from mmap_st.extract.encoders.network import ModuleNetwork, Output
from mmap_st.extract.encoders.spec import EncoderSpec
from mmap_st.extract.encoders.state import fit_state, read_state
from mmap_st.extract.encoders.weights import code_folder

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
            f"{spec.name} needs {OPEN_CLIP_CONFIG} beside {path}; copy the whole repository {_repo(spec)}."
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
            f"The weights {path} do not fit {spec.name}; {len(lost)} of {len(own)} tensors are not in it, or"
            f" not the same: {some(sorted(lost))}. Give weights of this encoder."
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
