"""The encoders that can be named, and which of them can be used on this machine; torch is not imported."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmap_st.errors import EncoderError, did_you_mean, first_line
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.plugins import installed_encoders, registered_encoders, spec_from_file
from mmap_st.extract.encoders.spec import (
    CustomModel,
    EncoderSpec,
    Hub,
    Pooling,
    Preprocessing,
    RemoteCodeModel,
    Rgb,
    TimmModel,
)
from mmap_st.extract.encoders.weights import (
    cached_file,
    fetch,
    find_weights,
    missing_package,
    no_weights,
    read_configuration,
)

TIMM_PREFIX = "timm:"
HUB_PREFIX = "hf-hub:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def known_encoders() -> Iterator[EncoderSpec]:
    """All that can be named: those declared here, registered ones, then those of installed packages."""
    yield from ENCODERS.values()
    yield from registered_encoders().values()
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
    registered = registered_encoders()
    if name in registered:
        return registered[name]
    installed = installed_encoders()
    if name in installed.specs:
        return installed.specs[name]
    if name in installed.broken:
        raise EncoderError(installed.broken[name])
    near = did_you_mean(name.lower(), [*ENCODERS, *registered, *installed.specs])
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
        raise EncoderError(f"timm has no input configuration for {arch}; {there}.") from error
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
        raise EncoderError(f"{repository!r} is not the name of a hub repository; write {HUB_PREFIX}ORG/NAME.")
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

    def as_json(self) -> dict[str, object]:
        """All that is known of it, with plain values."""
        spec = self.spec
        return {
            "name": spec.name,
            "ready": self.ready,
            "missing": self.missing or None,
            "weights": None if self.weights is None else str(self.weights),
            "to_get_it": _to_get_it(self),
            "runs_code_of_its_repository": isinstance(spec.model, RemoteCodeModel),
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


def listed_encoders(
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
    if package is not None:
        return ListedEncoder(spec, path, f"needs {package[0]}")
    if path is None:
        return ListedEncoder(spec, None, "not fetched yet" if spec.hub else "give --weights")
    return ListedEncoder(spec, path, "")


def look_at(name: str) -> ListedEncoder:
    """One encoder by the name that ``--encoder`` takes; upper and lower case are one.

    Raises
    ------
    EncoderError
        If there is none; it names those that are near.
    """
    return _look(encoder_spec(name if _is_free(name) else name.lower()))


def _is_free(name: str) -> bool:
    """Whether a name is not one of the list's."""
    declared = {*registered_encoders(), *installed_encoders().specs}
    return name.startswith((TIMM_PREFIX, HUB_PREFIX)) or ".py:" in name or name in declared


def _to_get_it(encoder: ListedEncoder) -> str | None:
    """What to do for an encoder that is not ready, in one line."""
    spec = encoder.spec
    package = missing_package(spec)
    steps = [] if package is None else [package[1]]
    if encoder.weights is None and spec.hub is None and not encoder.ready:
        steps.append(no_weights(spec))
    elif encoder.weights is None and spec.hub is not None:
        kind = "datasets/" if spec.hub.kind == "dataset" else ""
        if spec.gated:
            steps.append(
                f"ask for access at https://huggingface.co/{kind}{spec.hub.repo}, then `hf auth login`"
            )
        steps.append("the first run fetches its weights")
    if isinstance(spec.model, RemoteCodeModel):
        steps.append("pass --trust-remote-code, since it runs code of its hub repository")
    return "; ".join(steps) or None
