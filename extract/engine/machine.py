"""Examine this machine: what an extraction needs, and what is wrong with it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from mmap_st.errors import MmapError, did_you_mean, first_line
from mmap_st.extract.encoders import (
    Finding,
    configuration_path,
    installed_encoders,
    is_fast_at_bf16,
    known_encoders,
    read_configuration,
)
from mmap_st.extract.engine.planning import usable_cores

_LITTLE_SPACE_GB = 5.0


def examine_machine(folder: Path) -> Iterator[Finding]:
    """Look at what runs here: packages, device, disk at `folder`, the hub's settings; nothing is fetched."""
    yield Finding("Python", f"{sys.version.split()[0]} ({sys.executable})")
    yield Finding("torch and timm", f"{version('torch')}, {version('timm')}")
    yield _device()
    yield Finding(
        "CPU", f"{usable_cores()} cores, {'with' if is_fast_at_bf16('cpu') else 'without'} AMX for bf16"
    )
    yield _faiss()
    yield _slides()
    for package, encoders in (
        ("transformers", "phikon, phikon-v2, midnight-12k, plip"),
        ("open_clip", "quilt"),
    ):
        found = _version({"open_clip": "open_clip_torch"}.get(package, package))
        yield Finding(package, found or f"not installed; only {encoders} and similar encoders need it")
    yield _configuration()
    for name, trouble in installed_encoders().broken.items():
        yield Finding(f"encoder {name}", "broken", trouble)
    yield _hub()
    free = shutil.disk_usage(folder).free / 1e9
    little = free < _LITTLE_SPACE_GB
    yield Finding("disk", f"{free:.0f} GB free at {folder.resolve()}", "make room." if little else "")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = ", ".join(f"{device.name} ({device.total_memory / 1e9:.0f} GB)" for device in names)
        return Finding("GPU", f"{found}; auto precision is {'half' if is_fast_at_bf16('cuda') else 'fp32'}")
    if torch.backends.mps.is_available():
        return Finding("GPU", "Apple, by MPS")
    if shutil.which("nvidia-smi"):
        return Finding(
            "GPU",
            "none that torch sees, though nvidia-smi is here",
            f"torch {version('torch')} may be built without CUDA, or need a newer driver;"
            " see pytorch.org/get-started.",
        )
    return Finding("GPU", "none; encoders run on the CPU")


def _faiss() -> Finding:
    gpu, cpu = _version("faiss-gpu-cu12"), _version("faiss-cpu")
    if find_spec("faiss") is None:
        return Finding(
            "faiss", "not installed", "pip install 'mmap-st[cpu]', or 'mmap-st[gpu]' for NVIDIA cards."
        )
    if gpu and cpu:
        return Finding(
            "faiss", f"faiss-gpu {gpu} and faiss-cpu {cpu}", "they are one module; uninstall one of them."
        )
    return Finding("faiss", f"for the GPU, {gpu}" if gpu else f"for the CPU, {cpu or 'of another build'}")


def _slides() -> Finding:
    try:
        import openslide

        found = f"OpenSlide {openslide.__library_version__}"
    except (ImportError, OSError) as error:
        return Finding(
            "slides", f"OpenSlide cannot be loaded ({first_line(error)})", "pip install openslide-bin."
        )
    codecs = _version("imagecodecs")
    return Finding(
        "slides", f"{found}, {f'imagecodecs {codecs}' if codecs else 'no imagecodecs (extra tiff)'}"
    )


def _configuration() -> Finding:
    path = configuration_path()
    try:
        configuration = read_configuration()
    except MmapError as error:
        return Finding("encoders.toml", str(path), str(error))
    known = [spec.name for spec in known_encoders()]
    lost = [f"{name} ({where})" for name, where in configuration.weights.items() if not where.exists()]
    if lost:
        return Finding("encoders.toml", str(path), f"weights do not exist: {', '.join(lost)}; fix the paths.")
    unknown = [
        n for n in (*configuration.weights, *configuration.code) if n not in known and did_you_mean(n, known)
    ]
    if unknown:
        hints = ", ".join(f"{name}{did_you_mean(name, known)}" for name in unknown)
        return Finding("encoders.toml", str(path), f"no encoder is called {hints}.")
    named = len(configuration.weights)
    return Finding("encoders.toml", f"{path}, {named} weights" if path.is_file() else f"none ({path})")


def _hub() -> Finding:
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    try:
        token = "a token" if get_token() else "no token"
    except OSError as error:
        return Finding(
            "hub", f"its folder {cache.parent}", f"it cannot be read ({error.strerror}); set HF_HOME."
        )
    parts = [constants.ENDPOINT, token, f"cache {cache}", *(["offline"] if constants.HF_HUB_OFFLINE else [])]
    near = next((folder for folder in (cache, *cache.parents) if folder.exists()), cache)
    trouble = (
        "" if near.is_dir() and os.access(near, os.W_OK) else "the cache cannot be written; set HF_HOME."
    )
    if not urlsplit(constants.ENDPOINT).hostname:
        trouble = "HF_ENDPOINT is not an address, such as https://huggingface.co; fix or unset it."
    return Finding("hub", ", ".join(parts), trouble)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
