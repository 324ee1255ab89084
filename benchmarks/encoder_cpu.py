"""Measure what folding and kept memory do for an encoder on a CPU.

    python benchmarks/encoder_cpu.py

Each of the four combinations runs in processes of its own, in turn, so that what else the machine does falls
on all of them alike; it prints the median windows/s of each and its ratio to the plain one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np

from mmap_st.extract.encoders import build, encoder_spec
from mmap_st.extract.engine.device import keep_freed_memory

CASES = ("plain", "folded", "kept", "folded,kept")


def measure(case: str, encoder: str, seconds: float) -> float:
    """Windows a second of one combination, in this process."""
    steps = case.split(",")
    if "kept" in steps and not keep_freed_memory():
        raise SystemExit("memory can be kept with glibc alone")
    if "folded" not in steps:
        build.fold_batch_norms = lambda model, input_px: model
    spec = encoder_spec(encoder)
    built = build.build_encoder(spec, random_weights=encoder.startswith("timm:"), device="cpu")
    windows = np.random.default_rng(0).integers(0, 255, (32, spec.input_px, spec.input_px, 3), dtype=np.uint8)
    built.embed(windows)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        built.embed(windows)
        done += len(windows)
    return done / (time.perf_counter() - started)


def main() -> None:
    """Run every combination in turn and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(measure(arguments.case, arguments.encoder, arguments.seconds))
        return
    rates: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(arguments.rounds):
        for case in CASES:
            command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
            shown = subprocess.run(command, capture_output=True, text=True, check=True)
            rates[case].append(float(shown.stdout))
    plain = statistics.median(rates["plain"])
    print("| | windows/s | ratio |\n| --- | --- | --- |")
    for case in CASES:
        rate = statistics.median(rates[case])
        print(f"| {case} | {rate:.1f} | {rate / plain:.2f} |")


if __name__ == "__main__":
    main()
