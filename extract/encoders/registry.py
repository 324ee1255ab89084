"""Find an encoder by name; nothing here imports torch before it must."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from mmap_st.errors import EncoderError, did_you_mean, first_line
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.hub import cached_file, fetch
from mmap_st.extract.encoders.models import TimmModel
from mmap_st.extract.encoders.spec import EncoderSpec, Hub, Pooling, Preprocessing, Rgb
from mmap_st.extract.encoders.user import installed_encoders, spec_from_file

TIMM_PREFIX = "timm:"
HUB_PREFIX = "hf-hub:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def known_encoders() -> Iterator[EncoderSpec]:
    """All that can be named: those declared here, then those of installed packages."""
    yield from ENCODERS.values()
    yield from installed_encoders().specs.values()


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
    if name in installed.specs:
        return installed.specs[name]
    if name in installed.broken:
        raise EncoderError(installed.broken[name])
    near = did_you_mean(name.lower(), [*ENCODERS, *installed.specs])
    raise EncoderError(
        f"There is no encoder {name!r}{near}; `mmap encoders` lists them,"
        f" and there are {TIMM_PREFIX}NAME, {HUB_PREFIX}ORG/NAME and FILE.py:FUNCTION."
    )


def _timm_spec(name: str) -> EncoderSpec:
    import timm

    arch = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(arch):
        raise EncoderError(f"timm has no model {arch!r}{did_you_mean(arch, timm.list_models())}.")
    try:
        known: Any = timm.get_pretrained_cfg(arch, allow_unregistered=True)
        config = known.to_dict()
    except (RuntimeError, AttributeError) as error:  # no such tag; no configuration at all
        tags = timm.list_pretrained(f"{arch.partition('.')[0]}.*")
        there = f"it has {', '.join(tags)}" if tags else "give another"
        raise EncoderError(f"timm does not say how {arch} is fed; {there}.") from error
    repository = config.get("hf_hub_id")
    if repository and repository.endswith("/"):
        repository += f"{config['architecture']}.{config['tag']}"
    hub = Hub(repository) if repository else None
    return _timms(name, arch, {}, config, config.get("license") or "", "timm", hub)


def _hub_spec(name: str) -> EncoderSpec:
    """A repository of the hub that says in its config.json how timm builds it."""
    import timm

    repository = name.removeprefix(HUB_PREFIX)
    if not _REPOSITORY.fullmatch(repository):
        raise EncoderError(f"{repository!r} is no name of a hub repository; write {HUB_PREFIX}ORG/NAME.")
    where = Hub(repository, ("config.json",))
    try:
        path = cached_file(where) or fetch(where, name)
    except EncoderError as error:
        raise EncoderError(
            f"{error} With {TIMM_PREFIX}ARCH and --weights its configuration is not needed."
        ) from error
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        arch, pretrained = str(config["architecture"]), dict(config.get("pretrained_cfg", config))
        kwargs = dict(config.get("model_args") or {})
        kwargs.pop("num_classes", None)
        if config.get("global_pool") is not None:
            kwargs.setdefault("global_pool", config["global_pool"])
        if pretrained.get("fixed_input_size"):
            # As timm does: the arch's own size need not be that of these weights.
            kwargs.setdefault("img_size", int(pretrained["input_size"][-1]))
        if not timm.is_model(arch):
            raise EncoderError(f"{name} is a {arch!r}, which this timm does not have; update timm.")
        return _timms(
            name, arch, kwargs, pretrained, str(pretrained.get("license") or ""), "the hub", Hub(repository)
        )
    except EncoderError:
        raise
    except Exception as error:  # it may hold anything
        raise EncoderError(
            f"{name}: {path} does not say how timm builds it ({type(error).__name__}: {first_line(error)});"
            f" give {TIMM_PREFIX}ARCH and --weights, or FILE.py:FUNCTION."
        ) from error


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
            _rgb(config["mean"]),
            _rgb(config["std"]),
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


def _rgb(values: Any) -> Rgb:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _prefix_tokens(arch: str, kwargs: dict[str, Any]) -> int:
    """Class token and registers of an architecture, 0 for one without tokens; built without memory."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(arch, pretrained=False, num_classes=0, **kwargs)
    return int(getattr(model, "num_prefix_tokens", 0))
