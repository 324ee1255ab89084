"""Find an encoder by name; nothing here imports torch before it must."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from mmap_st.errors import EncoderError, did_you_mean
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.hub import cached_file, fetch
from mmap_st.extract.encoders.models import TimmModel
from mmap_st.extract.encoders.spec import EncoderSpec, Hub, Pooling, Preprocessing
from mmap_st.extract.encoders.user import installed_encoders, spec_from_file

TIMM_PREFIX = "timm:"
HUB_PREFIX = "hf-hub:"


def known_encoders() -> Iterator[EncoderSpec]:
    """All that can be named: those declared here, then those of installed packages."""
    yield from ENCODERS.values()
    yield from installed_encoders().values()


def encoder_spec(name: str) -> EncoderSpec:
    """Return the spec of an encoder.

    Parameters
    ----------
    name
        One of `ENCODERS`; one of an installed package; ``timm:NAME`` for any timm architecture;
        ``hf-hub:ORG/NAME`` for a hub repository in timm's layout; ``path.py:make`` for a user's own.

    Raises
    ------
    EncoderError
        If there is no such encoder; it names those that are near.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith(TIMM_PREFIX):
        return _timm_spec(name)
    if name.startswith(HUB_PREFIX):
        return _hub_spec(name)
    if ".py:" in name:
        return spec_from_file(name)
    installed = installed_encoders()
    if name in installed:
        return installed[name]
    raise EncoderError(
        f"There is no encoder {name!r}{did_you_mean(name, [*ENCODERS, *installed])}; `mmap encoders`"
        " lists them,"
        f" and there are {TIMM_PREFIX}NAME, {HUB_PREFIX}ORG/NAME and FILE.py:FUNCTION."
    )


def _timm_spec(name: str) -> EncoderSpec:
    import timm

    arch = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(arch):
        raise EncoderError(f"timm has no model {arch!r}{did_you_mean(arch, timm.list_models())}.")
    config: Any = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    return _timms(name, arch, {}, config.to_dict(), config.license or "", "timm", None)


def _hub_spec(name: str) -> EncoderSpec:
    """A repository of the hub that says in its config.json how timm builds it."""
    import timm

    repository = name.removeprefix(HUB_PREFIX)
    where = Hub(repository, ("config.json",))
    path = cached_file(where) or fetch(where, name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        arch, pretrained = config["architecture"], config.get("pretrained_cfg", config)
        kwargs = dict(config.get("model_args") or {})
        pretrained["input_size"], pretrained["mean"], pretrained["std"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(
            f"{name}: {path} does not say how timm builds it ({type(error).__name__}: {error}); give"
            " timm:ARCH and"
            " --weights, or FILE.py:FUNCTION."
        ) from error
    if not timm.is_model(arch):
        raise EncoderError(f"{name} is a {arch!r}, which this timm does not have; update timm.")
    if config.get("global_pool") is not None:
        kwargs.setdefault("global_pool", config["global_pool"])
    hub = Hub(repository)
    return _timms(name, arch, kwargs, pretrained, str(pretrained.get("license") or ""), "the hub", hub)


def _timms(
    name: str,
    arch: str,
    kwargs: dict[str, Any],
    config: dict[str, Any],
    licence: str,
    source: str,
    hub: Hub | None,
) -> EncoderSpec:
    """A spec by timm's configuration of a pretrained model."""
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise EncoderError(f"{name} takes pictures of {config['input_size']}, not square RGB windows.")
    resize = math.floor(height / (config.get("crop_pct") or 0.875))  # as timm's create_transform
    interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    return EncoderSpec(
        name=name,
        model=TimmModel(arch, kwargs),
        input_px=height,
        preprocessing=Preprocessing(
            tuple(config["mean"]),
            tuple(config["std"]),
            resize=resize,
            crop=height,
            interpolation=interpolation,
        ),
        pooling=Pooling(
            "own", prefix=_prefix_tokens(arch, kwargs), text="timm's own, without the classifier"
        ),
        hub=hub,
        licence=licence,
        source=source,
    )


def _prefix_tokens(arch: str, kwargs: dict[str, Any]) -> int:
    """Class token and registers of an architecture, 0 for one without tokens; built without memory."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(arch, pretrained=False, num_classes=0, **kwargs)
    return int(getattr(model, "num_prefix_tokens", 0))
