"""Measure reading and embedding, alone and together, against the plain way and against other tools.

    python benchmarks/extract.py read
    python benchmarks/extract.py embed --spots 100 --encoder vits14 --weights FILE
    python benchmarks/extract.py embed --device cuda --precision bf16 --encoder uni --batch 256

Every contestant gets the same windows: all magnifications around each spot of a square grid, by default on a
synthetic slide of three levels of JPEG tiles. Each runs in a process of its own, in turn, so that what else
the machine does falls on all alike; medians over the rounds are shown. `--peer lazyslide=PYTHON` adds another
tool by the Python of the environment that it is installed in. `embed` also measures the forward pass alone,
and on a GPU the rate of its matrix units.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pyramid import MPP, spots_on_grid, write_pyramid

HERE = Path(__file__).parent
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Architecture and its arguments; see contestants.register_architectures.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vits14": ("vit_small_patch14_dinov2", {"dynamic_img_size": True}),
    "uni": ("bench_uni", {}),
    "uni2-h": ("bench_uni2_h", {}),
    "h-optimus-0": ("bench_h_optimus", {}),
    "tiny": ("test_vit", {"img_size": 224}),
}
#: Side of the synthetic slide: 5,000 spots 100 um apart just fit.
SIDE_PX = 28_672


def main() -> None:
    """Run every contestant in turn and print a table."""
    arguments = _arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    job = _job(arguments, out)
    people = _contestants(arguments)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in people}
    for number in range(arguments.rounds):
        for name, python in people:
            result = _run(name, python, job, out)
            found[name].append(result)
            print(
                f"round {number + 1}: {name} {result['windows'] / result['seconds']:.1f} windows/s",
                flush=True,
            )
    (out / "results.json").write_text(json.dumps({"job": job, "results": found}, indent=1))
    _show(arguments, job, found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("read", "embed"))
    parser.add_argument("--out", type=Path, default=Path("out/benchmark-extract"))
    parser.add_argument("--slide", type=Path, help="a real slide, in place of the synthetic one")
    parser.add_argument("--mpp", type=float, help="its micrometres per pixel")
    parser.add_argument("--spots", type=int, default=5000)
    parser.add_argument("--mpps", default="0.25,0.5,1,2")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", choices=ENCODERS, default="vits14")
    parser.add_argument("--weights", type=Path, help="in safetensors; random ones otherwise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cache-mb", type=int, default=256)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--only", help="contestants to run, by name, separated by commas")
    return parser.parse_args()


def _job(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    slide, mpp = arguments.slide, arguments.mpp
    if slide is None:
        slide, mpp = out / f"synthetic_{SIDE_PX}.tif", MPP
        if not slide.exists():
            write_pyramid(slide, SIDE_PX, SIDE_PX)
        size = SIDE_PX, SIDE_PX
    else:
        import openslide

        with openslide.OpenSlide(slide) as opened:
            size = opened.dimensions
    xy = spots_on_grid(arguments.spots, *size, mpp)
    np.save(out / "xy.npy", xy)
    arch, arch_kwargs = ENCODERS[arguments.encoder]
    embed = arguments.what == "embed"
    return {
        "slide": str(slide.resolve()),
        "mpp": mpp,
        "mpps": [float(word) for word in arguments.mpps.split(",")],
        "xy": str((out / "xy.npy").resolve()),
        "input_px": 224,
        "workers": arguments.workers,
        "batch": arguments.batch,
        "embed": embed,
        "arch": arch,
        "arch_kwargs": arch_kwargs,
        "weights": str(arguments.weights.resolve()) if arguments.weights else None,
        "mean": IMAGENET[0],
        "std": IMAGENET[1],
        "device": arguments.device,
        "precision": arguments.precision,
        "compiled": arguments.compile,
        "cache_mb": arguments.cache_mb,
        # What only reads has no use for torch's threads, which would wait for each other in a loop.
        "torch_threads": (os.cpu_count() or 1) if embed else 1,
        "warm_up": min(8, len(xy)),
    }


def _contestants(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Name of each contestant, and the Python that runs it."""
    own = ["mmap", "forward", "plain"] if arguments.what == "embed" else ["mmap", "plain", "plain-level-0"]
    people = [(name, sys.executable) for name in own]
    for peer in arguments.peer:
        name, _, python = peer.partition("=")
        people.append((name, python))
        if name == "slide2vec":
            people.append(("slide2vec-cucim", python))
    if arguments.only:
        people = [one for one in people if one[0] in arguments.only.split(",")]
    return people


def _run(name: str, python: str, job: dict[str, Any], out: Path) -> dict[str, Any]:
    file = out / "job.json"
    backend = "cucim" if name.endswith("-cucim") else "openslide"
    file.write_text(json.dumps({**job, "backend": backend}))
    name = name.removesuffix("-cucim")
    done = subprocess.run(
        [python, str(HERE / "contestants.py"), name, str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _show(arguments: argparse.Namespace, job: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> None:
    rates = {
        name: statistics.median(one["windows"] / one["seconds"] for one in results)
        for name, results in found.items()
    }
    windows = next(iter(found.values()))[0]["windows"]
    print(f"\n{windows} windows of {Path(job['slide']).name}, {platform.processor() or platform.machine()}")
    print("| | windows/s | mmap is faster by | of it |\n| --- | --- | --- | --- |")
    for name, rate in rates.items():
        ratio = f"{rates['mmap'] / rate:.2f}" if "mmap" in rates else ""
        print(f"| {name} | {rate:.1f} | {ratio} | {_about(found[name])} |")
    if "forward" in rates and "mmap" in rates:
        share = rates["mmap"] / rates["forward"]
        print(f"\nthe forward pass alone would take {share:.1%} of mmap's time")
    if arguments.device.startswith("cuda") and "forward" in rates:
        _show_arithmetic(job, rates)


def _about(results: list[dict[str, Any]]) -> str:
    last = results[-1]
    parts = [f"{k} {v}" for k, v in last.get("versions", {}).items()]
    if "decode_amplification" in last:
        parts.append(f"{last['decode_amplification']:.2f} decodes a tile")
    if last.get("forward_s"):
        shares = [one["forward_s"] / one["seconds"] for one in results]
        parts.append(f"forward {statistics.median(shares):.1%} of the time")
    return ", ".join(parts)


def _show_arithmetic(job: dict[str, Any], rates: dict[str, float]) -> None:
    """Rates as a share of what the GPU's matrix units do in a plain product."""
    from types import SimpleNamespace

    import torch
    from contestants import model_of, register_architectures
    from torch.utils.flop_counter import FlopCounterMode

    register_architectures()
    with torch.device("meta"):
        model = model_of(SimpleNamespace(**{**job, "weights": None, "device": "meta"}))
        counter = FlopCounterMode(display=False)
        with counter, torch.inference_mode():
            model(torch.empty(1, 3, job["input_px"], job["input_px"]))
    flops = counter.get_total_flops()
    dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
    a, b = (torch.randn(8192, 8192, device=job["device"], dtype=dtype) for _ in range(2))
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for number in range(60):
        if number == 20:
            began.record()
        a @ b
    ended.record()
    ended.synchronize()
    matrix_rate = 40 * 2 * 8192**3 / (began.elapsed_time(ended) / 1e3)
    print(f"\n{torch.cuda.get_device_name()}: {matrix_rate / 1e12:.0f} TFLOP/s in products of 8192 x 8192")
    for name, rate in rates.items():
        print(f"{name}: {flops * rate / 1e12:.1f} TFLOP/s, {flops * rate / matrix_rate:.1%} of that")


if __name__ == "__main__":
    main()
