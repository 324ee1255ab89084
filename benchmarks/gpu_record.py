"""Figures of a run that may be stopped at any moment: each is on disk as soon as it is known."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, Any]


class Record:
    """The figures of one part, in a file that is replaced with each of them.

    Parameters
    ----------
    folder, part
        Of the file, ``FOLDER/PART.json``.
    device
        ``cpu`` or ``cuda``.
    seconds
        After so many no measurement is begun any more.
    """

    def __init__(self, folder: Path, part: str, device: str, seconds: float) -> None:
        self.path = folder / f"{part}.json"
        self._began, self._seconds = time.perf_counter(), seconds
        self._content: Figures = {
            "part": part,
            "machine": machine(device),
            "figures": {},
            "failures": {},
            "left_out": {},
        }
        self.save()

    @property
    def failed(self) -> bool:
        """Whether anything went wrong."""
        return bool(self._content["failures"])

    @property
    def left_s(self) -> float:
        """Seconds until no measurement is begun any more."""
        return self._seconds - (time.perf_counter() - self._began)

    def measure(self, name: str, function: Callable[[], Figures], needs_s: float = 0.0) -> Figures | None:
        """Keep what `function` returns, or why it failed; leave it out where less than `needs_s` is left."""
        if self.left_s < needs_s:
            self._content["left_out"][name] = f"{self.left_s:.0f} s left, about {needs_s:.0f} s needed"
            print(f"{name}: left out, {self._content['left_out'][name]}", flush=True)
            self.save()
            return None
        began = time.perf_counter()
        try:
            figures = function()
        except Exception:  # noqa: BLE001 - whatever it is, the others are still measured
            self.fail(name, traceback.format_exc())
            return None
        self.keep(name, {**figures, "took_s": time.perf_counter() - began})
        return figures

    def keep(self, name: str, figures: Figures) -> None:
        """Keep figures under a name."""
        self._content["figures"][name] = rounded(figures)
        print(f"{name}: {json.dumps(self._content['figures'][name])}", flush=True)
        self.save()

    def fail(self, name: str, reason: str) -> None:
        """Keep why something failed."""
        self._content["failures"][name] = reason
        print(f"{name} failed:\n{reason}", flush=True)
        self.save()

    def save(self) -> None:
        """Write all of it, by a file that takes the place of the one before."""
        self._content["seconds"] = round(time.perf_counter() - self._began, 1)
        draft = self.path.with_suffix(".partial")
        draft.write_text(json.dumps(self._content, indent=1), "utf-8")
        os.replace(draft, self.path)


def machine(device: str) -> Figures:
    """What the figures were measured on."""
    found: Figures = {
        "device": device,
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "numpy", "numba")},
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
        found["cuda"] = torch.version.cuda
        found["driver"] = _driver()
    return found


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown ({error})"


def rounded(value: Any) -> Any:
    """Numbers with the digits that mean something."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def table(folder: Path) -> str:
    """All figures of a folder in Markdown: a block for each part, a line for each figure."""
    lines: list[str] = []
    for part in ("tests", "extract", "head"):
        path = folder / f"{part}.json"
        if not path.exists():
            continue
        content = json.loads(path.read_text("utf-8"))
        about = content["machine"]
        on = [about.get("gpu", about["device"]), f"{about['cpus']} CPU cores", f"torch {about['torch']}"]
        on += [f"{name} {about[name]}" for name in ("cuda", "driver") if name in about]
        lines += [f"**{part}**, {content['seconds']:g} s: {', '.join(on)}", "", "| | |", "| --- | --- |"]
        for name, figures in content["figures"].items():
            shown = (f"{key} {_shown(value)}" for key, value in figures.items() if key != "took_s")
            lines.append(f"| {name} | {', '.join(shown)} |")
        for name, reason in content["left_out"].items():
            lines.append(f"| {name} | left out: {reason} |")
        for name, reason in content["failures"].items():
            last = reason.strip().splitlines()[-1].replace("|", "/")
            lines.append(f"| {name} | FAILED: {last} |")
        lines.append("")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_shown(one)}" for key, one in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
