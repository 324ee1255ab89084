"""Try the Ray engine: kill what it consists of, and measure it beside processes and beside Ray Data.

    python benchmarks/ray_engine.py kills [--kills 20] [--seed 0]
    python benchmarks/ray_engine.py fits [--kills 20] [--seed 0]
    python benchmarks/ray_engine.py speed COHORT [--encoder NAME] [--magnifications 20,10,5] [--rounds 3]

`kills` embeds simulated sections on a cluster of three nodes (`ray.cluster_utils.Cluster`: a head that embeds
nothing, two with an actor each). Whenever some windows more are safe on disk it kills one thing at random:
the process of an actor, an actor by `ray.kill`, and once a whole node, which another one replaces a while
later. After each kill it reads all that is marked complete, and compares it with a store that one process
made; in the end, all.

`fits` cross-validates a head on such a cluster. Every few seconds it kills the process of a task that fits,
and once a node, which another one replaces; in the end it compares all predictions with those of one process.

`speed` embeds a cohort by two processes (`--device cpu,cpu`), by two actors of one CPU each, and by Ray Data:
a task reads windows, an actor embeds them, each with one CPU; embeddings are counted and not stored.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mmap_st.data.readers import open_cohort
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.encoder_request import EncoderRequest, build_requested
from mmap_st.extract.engine.extraction import extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.engine.planning.plan import PlanRequest, plan_slide, run_recipe
from mmap_st.extract.engine.workers.ray_request import RayRequest
from mmap_st.extract.engine.workers.ray_workers import Actors
from mmap_st.extract.store import FeatureStore
from mmap_st.progress import Silent
from mmap_st.ray_cluster import imported_ray
from mmap_st.urls import Place

TINY = "timm:test_efficientnet"
MPPS = (0.5, 1.0, 2.0)


def main() -> None:
    """Run what is asked for, and print what comes of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kills", "fits", "speed", "engine", "data"))
    parser.add_argument("cohort", nargs="?")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slides", type=int, default=12)
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--magnifications", default="20,10,5")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="local")
    arguments = parser.parse_args()
    ways = {"kills": kill, "fits": kill_fits, "speed": compare, "engine": embed, "data": embed_by_ray_data}
    ways[arguments.what](arguments)


class Killing(Silent):
    """Kills something now and then, when windows are safe on disk; see above."""

    def __init__(self, cluster: Any, expected: dict[str, bytes], store: Path, kills: int, seed: int) -> None:
        self.cluster, self.expected, self.store = cluster, expected, store
        self.most, self.chance = kills, random.Random(seed)
        self.actors: list[Any] = []
        self.kinds: Counter[str] = Counter()
        self.total = self.shown = self.checked = self.since_node = 0
        self.next = 0
        self.lacks_node = False

    def start(self, items: int, total: int | None = None) -> None:
        """Spread the kills over all windows."""
        self.total = total or 0

    def advance(self, amount: int) -> None:
        """Kill something, where it is time to."""
        self.shown += amount
        done = self.kinds.total()
        if amount <= 0 or done >= self.most or self.shown < self.total * done / (self.most + 1):
            return
        alive = [actor for actor in self.actors if actor.pid and is_alive(actor.pid)]
        if not alive:
            return
        if self.lacks_node:
            self.since_node += 1
            if self.since_node == 3:
                self.add_node()
        kind = "node" if done == self.most // 2 else self.chance.choice(["process", "actor"])
        self.kinds[kind] += 1
        self.kill(kind, self.chance.choice(alive))
        self.check()
        print(f"kill {done + 1}: {kind}, at {self.shown} of {self.total} windows", flush=True)

    def kill(self, kind: str, actor: Any) -> None:
        """Kill a process, an actor, or the first node that is not the head."""
        import ray

        if kind == "process":
            os.kill(actor.pid, signal.SIGKILL)
        elif kind == "actor":
            ray.kill(actor.handle)
        else:
            self.cluster.remove_node(self.cluster.worker_nodes.copy().pop(), allow_graceful=False)
            self.lacks_node = True

    def add_node(self) -> None:
        """A machine joins in place of the one that was killed."""
        self.cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        self.lacks_node = False

    def check(self) -> None:
        """Whatever is marked complete is what one process makes."""
        for name, content in contents(self.store).items():
            assert content == self.expected[name], f"{name} is complete, and not what one process makes"
            self.checked += 1


def three_nodes() -> Any:
    """A cluster of a head without CPUs and two nodes of one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    return cluster


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def contents(path: Place) -> dict[str, bytes]:
    """All bytes of rows that are marked complete."""
    store = FeatureStore.open(path)
    found = {}
    for name in store.slides:
        for mpp, magnification in store.slide(name).complete(TINY).items():
            arrays = magnification.embedding(), magnification.valid(), magnification.in_bounds()
            found[f"{name} {mpp}"] = b"".join(array.tobytes() for array in arrays)
    return found


def kill(arguments: argparse.Namespace) -> None:
    """Embed on a cluster that is being killed; see above."""
    import logging

    ray = imported_ray()
    from mmap_st.workflows.simulation import SimulationSettings, simulate_cohort

    logging.basicConfig(format="    %(message)s")
    request = EncoderRequest(encoder_spec(TINY), random_weights=True, device="cpu", precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = SimulationSettings(patients=arguments.slides, size_um=2600.0, genes_per_kind=2)
        simulate_cohort(root / "her2st", settings, seed=1, processes=2)
        cohort = open_cohort(f"her2st:{root / 'her2st'}")
        options = ExtractOptions(batch_size=8, workers=1, chunk=64)
        alone = extract_cohort(cohort, root / "1.zarr", request, MPPS, options)
        expected = contents(root / "1.zarr")
        print(f"one process: {len(alone.done)} slides, {alone.windows} windows")
        cluster = three_nodes()
        killing = Killing(cluster, expected, root / "n.zarr", arguments.kills, arguments.seed)
        start = Actors.start

        def started(self: Actors, place: int) -> Any:
            killing.actors.append(start(self, place))
            return killing.actors[-1]

        Actors.start = started  # type: ignore[method-assign]
        began = time.monotonic()
        report = extract_cohort(
            cohort, root / "n.zarr", request, MPPS, options, killing,
            ray=RayRequest(cluster.address, actors=2, gpus_per_actor=0),
        )  # fmt: skip
        took = time.monotonic() - began
        assert not report.failed, report.failed
        assert sorted(report.done) == sorted(alone.done)
        assert contents(root / "n.zarr") == expected
        assert killing.shown == killing.total, "progress counts some windows twice, or not at all"
        assert not ray.is_initialized()
        cluster.shutdown()
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(killing.kinds.items()))
    print(
        f"{killing.kinds.total()} kills ({kinds}), {len(killing.actors)} actors started: all"
        f" {len(alone.done)} slides done in {took:.0f} s, the same to the bit; {killing.checked} times"
        " something complete was compared meanwhile"
    )


class FitKiller:
    """Kills processes of fits, one every few seconds, and once a node; see above."""

    def __init__(self, cluster: Any, kills: int, seed: int) -> None:
        self.cluster, self.most, self.chance = cluster, kills, random.Random(seed)
        self.kinds: Counter[str] = Counter()

    def kill_until(self, done: Future[Any]) -> None:
        """Until there have been enough of them, or all is done; nodes are made by the main thread alone."""
        while self.kinds.total() < self.most:
            wait([done], self.chance.uniform(0.5, 4.0))
            if done.done():
                return
            if self.kinds.total() == self.most // 2 and not self.kinds["node"]:
                self.cluster.remove_node(self.cluster.worker_nodes.copy().pop(), allow_graceful=False)
                self.cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
                self.kinds["node"] += 1
            elif fits := self.fits():
                os.kill(self.chance.choice(fits), signal.SIGKILL)
                self.kinds["process"] += 1
            print(f"kills: {self.kinds.total()}", flush=True)

    @staticmethod
    def fits() -> list[int]:
        """Processes that fit now: Ray names them by what they run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (folder / "cmdline").read_bytes().startswith(b"ray::run_fit"):
                    found.append(int(folder.name))
        return found


def kill_fits(arguments: argparse.Namespace) -> None:
    """Cross-validate on a cluster that is being killed; see above."""
    import logging

    import mmap_st as mm
    from mmap_st.head.evaluation import ray_fits
    from mmap_st.workflows.simulation import SimulationSettings, simulate_cohort

    imported_ray()
    logging.basicConfig(format="    %(message)s")
    ray_fits._MOST_RUNS = arguments.kills + 1  # one fit may be hit by all
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = SimulationSettings(patients=arguments.slides, size_um=2600.0, genes_per_kind=20)
        simulate_cohort(root / "her2st", settings, seed=1, processes=2)
        cohort = mm.read_cohort(f"her2st:{root / 'her2st'}")
        store = mm.embed(
            cohort, root / "f.zarr", encoder=TINY, random_weights=True, mpp=MPPS, precision="fp32",
            progress=False,
        )  # fmt: skip
        what: dict[str, Any] = {"encoder": TINY, "genes": "all", "settings": {"epochs": 2}}
        what |= {"progress": False}
        began = time.monotonic()
        alone = mm.evaluate(cohort, store, out=root / "alone", jobs=1, **what)
        print(f"one process: {time.monotonic() - began:.0f} s", flush=True)
        cluster = three_nodes()
        killer = FitKiller(cluster, arguments.kills, arguments.seed)
        began = time.monotonic()
        what |= {"engine": "ray", "address": cluster.address, "gpus_per_job": 0}
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(mm.evaluate, cohort, store, out=root / "ray", **what)
            killer.kill_until(done)
            found = done.result()
        took = time.monotonic() - began
        cluster.shutdown()
        assert not found.report.failed_folds, found.report.failed_folds
        names = sorted(path.name for path in (root / "alone" / "predictions").iterdir())
        assert names == sorted(path.name for path in (root / "ray" / "predictions").iterdir())
        apart = max(
            float(np.abs(table(root / "ray", name) - table(root / "alone", name)).max()) for name in names
        )
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(killer.kinds.items()))
    scores = alone.metrics.test.pcc_slide, found.metrics.test.pcc_slide
    print(
        f"{killer.kinds.total()} kills ({kinds}): all {len(names)} slides predicted in {took:.0f} s,"
        f" {apart:.1e} apart at most from one process; PCC {scores[0]:.6f} and {scores[1]:.6f}"
    )


def table(run: Path, name: str) -> np.ndarray:
    """Predictions of a slide."""
    import anndata

    return np.asarray(anndata.read_h5ad(run / "predictions" / name).X)


def embed(arguments: argparse.Namespace) -> None:
    """Embed a cohort into a store that is thrown away, and print the windows a second."""
    import mmap_st as mm

    how: dict[str, Any] = {"device": "cpu,cpu", "workers": 2}
    if arguments.engine == "ray":
        how = {"device": "cpu", "engine": "ray", "actors": 2, "workers": 1}
    with tempfile.TemporaryDirectory() as folder:
        figures = mm.embed(
            arguments.cohort, Path(folder) / "s.zarr", encoder=arguments.encoder,
            magnifications=arguments.magnifications, precision="fp32", progress=False, **how,
        ).report.telemetry  # fmt: skip
    print(figures.windows / figures.seconds)


def read_slide(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read the windows of one slide, a step at a time: a task of Ray Data."""
    from mmap_st.extract.slides import open_slide
    from mmap_st.extract.windows import WindowReader, plan_reading

    plan, input_px = pickle.loads(batch["plan"][0])
    slide = open_slide(plan.image)
    wanted = {mpp: np.arange(len(plan.spots)) for mpp in plan.recipes}
    reading = plan_reading(slide.levels, plan.spots.xy, plan.source.mpp, input_px, wanted, 32, 256 << 20)
    reader = WindowReader(slide, reading, 256 << 20)
    for step in range(len(reading)):
        yield {"pixels": reader.read(step).pixels}


class Embedding:
    """Embeds windows: an actor of Ray Data."""

    def __init__(self, request: EncoderRequest) -> None:
        import torch

        torch.set_num_threads(1)
        self.encoder = build_requested(request, None, ExtractOptions())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Pixels to embeddings, with when that began and ended."""
        from mmap_st.extract.engine.device import DeviceQueue

        began, device = time.time(), DeviceQueue(self.encoder, lambda: False)
        pixels = device.allocate(batch["pixels"].shape, False)
        pixels[:] = batch["pixels"]
        device.put(pixels, None)
        _, embedding = device.take()
        times = np.full(len(embedding), began), np.full(len(embedding), time.time())
        return {"embedding": embedding, "began": times[0], "ended": times[1]}


def embed_by_ray_data(arguments: argparse.Namespace) -> None:
    """The same by Ray Data; prints the windows a second, and what travels."""
    import logging

    ray = imported_ray()
    from mmap_st.workflows.arguments import mpps_of

    request = EncoderRequest(encoder_spec(arguments.encoder), device="cpu", precision="fp32")
    encoder = build_requested(request, None, ExtractOptions())
    mpps = mpps_of(arguments.magnifications, None)
    assert mpps is not None
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore.create(Path(folder) / "s.zarr")
        plans = [
            plan_slide(row, store, PlanRequest(run_recipe(encoder), mpps))
            for row in open_cohort(arguments.cohort).slides
            if row.image is not None
        ]
    # Tasks that read have a resource of their own, as embedding has on a GPU: else both become one actor.
    ray.init(
        "local", num_cpus=2, resources={"reading": 1}, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"plan": pickle.dumps((plan, encoder.spec.input_px))} for plan in plans]
    found = ray.data.from_items(items, override_num_blocks=len(items))
    found = found.map_batches(read_slide, batch_size=1, num_cpus=1, resources={"reading": 1})
    found = found.map_batches(
        Embedding, fn_constructor_args=(request,), batch_size=32, num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=1),
    )  # fmt: skip
    rows = list(found.select_columns(["began", "ended"]).iter_batches(batch_size=None))
    began = min(batch["began"].min() for batch in rows)
    ended = max(batch["ended"].max() for batch in rows)
    windows = sum(len(batch["began"]) for batch in rows)
    ray.shutdown()
    pixels = windows * 3 * encoder.spec.input_px**2
    handed = sum(len(item["plan"]) for item in items)
    print(f"{windows} windows: {pixels / len(plans) / 1e6:.1f} MB of pixels a slide travel; plans of engines:"
          f" {handed / len(plans) / 1e3:.1f} kB", file=sys.stderr)  # fmt: skip
    print(windows / (ended - began))


def compare(arguments: argparse.Namespace) -> None:
    """Two processes, two actors and Ray Data in turn, on two cores."""
    ways = {
        "two processes": ("engine", "--engine", "local"),
        "two actors": ("engine", "--engine", "ray"),
        "Ray Data": ("data",),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds):
        for name, (what, *more) in ways.items():
            words = [
                sys.executable, __file__, what, arguments.cohort, "--encoder", arguments.encoder,
                "--magnifications", arguments.magnifications, *more,
            ]  # fmt: skip
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(float(done.stdout.split()[-1]))
            print(f"round {number + 1}: {name} {found[name][-1]:.1f} windows/s", flush=True)
    for name, rates in found.items():
        print(f"{name}: {statistics.median(rates):.1f} windows/s")


if __name__ == "__main__":
    main()
