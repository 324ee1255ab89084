"""Kill an extraction again and again, and see that nothing is lost and nothing wrong is called complete.

    python benchmarks/kills.py devices|jobs|url [--kills 20] [--seed 0] [--slides 12]

`devices`: the two processes of ``--device cpu,cpu``. `jobs`: four jobs on one store, ``--claim``; each that
is killed is started again. `url`: the same on a store in an object store (moto's server). All embed 12
simulated sections. After each kill all that is marked complete is compared with what one process made.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ray_engine import TINY, contents, is_alive

from mmap_st.extract.store import FeatureStore
from mmap_st.urls import Place, Url
from mmap_st.workflows.simulation import SimulationSettings, simulate_cohort

JOBS = 4


def command(cohort: Path, store: Place, *more: str) -> list[str]:
    """What embeds the sections."""
    return [
        sys.executable, "-m", "mmap_st", "extract", f"her2st:{cohort}", str(store), "--encoder", TINY,
        "--random-weights", "--mpp", "0.5,1,2", "--precision", "fp32", "--batch-size", "8", "--workers", "2",
        "--chunk", "64", *more,
    ]  # fmt: skip


def started(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a job that computes with one thread, as all others do: the bits depend on how many there are."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def workers_of(pid: int) -> list[int]:
    """The processes of a run that embed: a server, which is its child, forks them."""
    return [worker for child in _children(pid) for worker in _children(child) if is_alive(worker)]


def compare(store: Place, expected: dict[str, bytes]) -> int:
    """How much is complete; all of it must be what one process makes."""
    if isinstance(store, Path) and not (store / "zarr.json").is_file():
        return 0
    found = contents(store)
    for name, content in found.items():
        assert content == expected[name], f"{name} is complete, and not what one process makes"
    return len(found)


def kill_devices(
    words: Callable[..., list[str]], check: Callable[[], int], kills: int, chance: random.Random
) -> Iterator[int]:
    """Kill a worker of one run now and then."""
    run = started(words("--device", "cpu,cpu"))
    while run.poll() is None:
        time.sleep(chance.uniform(0.2, 1.2))
        if kills and len(alive := workers_of(run.pid)) == 2 and check():
            os.kill(chance.choice(alive), signal.SIGKILL)
            kills -= 1
            yield check()
    assert run.returncode == 0, f"the run ended with {run.returncode}"
    assert not kills, f"the run was over {kills} kills too early"


def kill_jobs(
    words: Callable[..., list[str]], check: Callable[[], int], kills: int, chance: random.Random
) -> Iterator[int]:
    """Kill one of several jobs now and then, and start it again."""
    jobs = [started(words("--claim")) for _ in range(JOBS)]
    for _ in range(kills):
        time.sleep(chance.uniform(1.0, 8.0))
        number = chance.randrange(JOBS)
        jobs[number].kill()
        jobs[number].wait()
        jobs[number] = started(words("--claim"))
        yield check()
    for job in jobs:
        assert job.wait() == 0, f"a job ended with {job.returncode}"


@contextmanager
def object_store() -> Iterator[Any]:
    """A server with a bucket, which the environment names."""
    from object_store import server

    with server(0.0) as asked:
        yield asked


def main() -> None:
    """Kill, compare, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("devices", "jobs", "url"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slides", type=int, default=12)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        object_store() if arguments.what == "url" else nullcontext(),
    ):
        root = Path(folder)
        os.environ["MMAP_CACHE"] = str(root / "cache")
        settings = SimulationSettings(patients=arguments.slides, size_um=2600.0, genes_per_kind=2)
        simulate_cohort(root / "her2st", settings, seed=1, processes=2)
        assert started(command(root / "her2st", root / "1.zarr")).wait() == 0
        expected = contents(root / "1.zarr")
        store: Place = Url("s3://lab/n.zarr") if arguments.what == "url" else root / "n.zarr"
        killing = kill_devices if arguments.what == "devices" else kill_jobs
        began, checked, done = time.monotonic(), 0, 0
        for complete in killing(
            lambda *more: command(root / "her2st", store, *more),
            lambda: compare(store, expected),
            arguments.kills,
            random.Random(arguments.seed),
        ):
            done += 1
            checked += complete
            print(f"kill {done}: {complete} of {len(expected)} complete", flush=True)
        took = time.monotonic() - began
        assert contents(store) == expected
        slides = len(FeatureStore.open(store).slides)
        left = [path for path in (root / "cache").rglob("*") if path.name.endswith(".rows")]
        assert not left, f"{len(left)} journals are left"
    print(
        f"{arguments.what}: {done} kills: all {slides} slides complete in {took:.0f} s, the same to the bit;"
        f" {checked} times something complete was compared meanwhile"
    )


if __name__ == "__main__":
    main()
