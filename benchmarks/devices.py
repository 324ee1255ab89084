"""Measure several processes against one, and how busy the pipeline keeps a device.

    python benchmarks/devices.py processes COHORT [--encoder NAME] [--magnifications 20,10,5]
    python benchmarks/devices.py sleep --rate 375

`processes` embeds a cohort by one process of one thread on one core, then by two of them (`--device cpu,cpu`)
in turn, and prints the ratio of the windows a second. `sleep` embeds synthetic slides by a device that does
nothing for as long as a forward pass would take at the given rate: what is lost besides is what reading,
writing and the queue cost.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pyramid import MPP, spots_on_grid, write_pyramid

MAGNIFICATIONS = "20,10,5"


def main() -> None:
    """Run what is asked for, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("processes", "sleep", "one"))
    parser.add_argument("cohort", nargs="?")
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--magnifications", default=MAGNIFICATIONS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=375.0, help="windows/s of the device that sleeps")
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--spots", type=int, default=1500)
    arguments = parser.parse_args()
    if arguments.what == "one":
        embed(arguments)
    elif arguments.what == "processes":
        compare(arguments)
    else:
        sleep(arguments)


def embed(arguments: argparse.Namespace) -> None:
    """Embed a cohort into a store that is thrown away, and print the windows a second."""
    import torch

    import mmap_st as mm

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = mm.embed(
            arguments.cohort, Path(folder) / "s.zarr", encoder=arguments.encoder, device=arguments.device,
            magnifications=arguments.magnifications, workers=arguments.workers, precision="fp32",
            progress=False,
        ).report.telemetry  # fmt: skip
    print(figures.windows / figures.seconds)


def compare(arguments: argparse.Namespace) -> None:
    """One process of one thread on one core, and two of them on two."""
    core = min(os.sched_getaffinity(0))
    found: dict[str, list[float]] = {"cpu": [], "cpu,cpu": []}
    for number in range(arguments.rounds):
        for device, rates in found.items():
            words = [
                sys.executable, __file__, "one", arguments.cohort, "--encoder", arguments.encoder,
                "--magnifications", arguments.magnifications, "--device", device,
                "--workers", str(len(device.split(","))),
            ]  # fmt: skip
            if device == "cpu":
                words = ["taskset", "-c", str(core), *words]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            rates.append(float(done.stdout.split()[-1]))
            print(f"round {number + 1}: {device} {rates[-1]:.1f} windows/s", flush=True)
    one, two = (statistics.median(rates) for rates in found.values())
    print(f"two processes {two:.1f} windows/s, one {one:.1f}: {two / one:.2f} times")


def sleep(arguments: argparse.Namespace) -> None:
    """Embed synthetic slides by a device that sleeps."""
    import torch

    import mmap_st as mm
    from mmap_st.encoders import CustomModel, EncoderSpec, Pooling, Preprocessing

    class Sleeping(torch.nn.Module):
        """Takes as long as a forward pass, and no core."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            """(b, 3, px, px) to (b, 1024)."""
            time.sleep(len(images) / arguments.rate)
            return images.flatten(1)[:, :1024]

    spec = EncoderSpec(
        name="sleeping",
        model=CustomModel(Sleeping, "sleeping"),
        input_px=224,
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        pooling=Pooling("own", text="what the network gives"),
        width=1024,
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = ["slide,image,spots,reader,mpp"]
        side = 16_384
        for index in range(arguments.slides):
            image, table = Path(folder) / f"{index}.tif", Path(folder) / f"{index}.csv"
            write_pyramid(image, side, side, repeat_bytes=True, seed=index)
            xy = spots_on_grid(arguments.spots, side, side)
            lines = [f"s{number},{x},{y}" for number, (x, y) in enumerate(xy)]
            table.write_text("\n".join(["id,x,y", *lines]) + "\n")
            rows.append(f"S{index},{image},{table},table,{MPP}")
        (Path(folder) / "c.csv").write_text("\n".join(rows) + "\n")
        store = mm.embed(
            Path(folder) / "c.csv", Path(folder) / "s.zarr", encoder=spec, random_weights=True,
            magnifications=arguments.magnifications, device="cpu", workers=arguments.workers, progress=False,
        )  # fmt: skip
        figures = store.report.telemetry
        print(f"{figures}; {figures.windows} windows in {figures.seconds:.1f} s")


if __name__ == "__main__":
    main()
