"""Fits as tasks of Ray: the same numbers, also where their processes die."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.readers import read_counts
from mmap_st.data.splits import Fold, Split
from mmap_st.errors import EvaluationError, HeadError, RequestError
from mmap_st.extract.engine import ActorPlan, RayRequest
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.evaluation import ray_fits
from mmap_st.head.evaluation.ablations import evaluate
from mmap_st.head.evaluation.fold_jobs import SharedInputs, device_of, plan_jobs
from mmap_st.head.evaluation.folder import EvaluateRequest
from mmap_st.head.runs.request import fit_request
from mmap_st.ray_cluster import Origin

ray = pytest.importorskip("ray", reason="needs the extra ray")

ENCODER = "efficientnet-lite0"
#: A linear head; while there are files in a folder, its fits take one away and end their process.
MORTAL = """
import os
import signal
from pathlib import Path

import torch
from torch import nn

from mmap_st.heads import BlockNetwork, NetworkSettings, network_method


class MortalNetwork(BlockNetwork):
    def __init__(self, sizes, settings):
        super().__init__()
        self.layer = nn.Linear(sizes.magnifications * sizes.width, sizes.outputs)

    def prepare_inputs(self, block):
        for death in Path(DEATHS).iterdir():
            death.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"embedding": torch.from_numpy(block.embedding).flatten(1)}

    def forward(self, inputs, rows):
        return self.layer(inputs["embedding"][rows])


MORTAL = network_method("mortal", NetworkSettings, MortalNetwork)
"""


@pytest.fixture(scope="module")
def connected() -> Iterator[None]:
    """A Ray of two CPUs, to which this process is connected, as a notebook may be."""
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def deaths(tmp_path: Path) -> Path:
    folder = tmp_path / "deaths"
    folder.mkdir()
    return folder


@pytest.fixture
def mortal(deaths: Path, tmp_path: Path) -> EvaluateRequest:
    file = tmp_path / "mortal.py"
    file.write_text(MORTAL.replace("DEATHS", repr(str(deaths))))
    fit = fit_request(ENCODER, f"{file}:MORTAL", pairs=("epochs=1",), genes="hvg:6", baselines=False)
    return EvaluateRequest(fit, "patient:2", jobs=1)


@pytest.mark.usefixtures("connected")
def test_fits_whose_processes_die_are_run_again(
    mortal: EvaluateRequest,
    deaths: Path,
    cohort: Cohort,
    store: FeatureStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = evaluate(cohort, store, mortal, tmp_path / "here")
    (deaths / "one").touch()
    said: list[str] = []
    ray_request = RayRequest(actors=2, gpus_per_actor=0)
    with caplog.at_level("WARNING"):
        there = evaluate(cohort, store, replace(mortal, ray=ray_request), tmp_path / "there", said.append)
    assert not list(deaths.iterdir())
    assert caplog.text.count("seed 0 died; the fit is run again") == 1
    assert there.failed_folds == {}
    assert said[-1].endswith("2 of 2 fits, about 0 s left")
    assert any(text.startswith("fits on Ray: 1 CPU, 3 GB each") for text in said)
    for metric in ("pcc_slide", "mse", "mae"):
        assert there.metrics.test.value(metric) == pytest.approx(here.metrics.test.value(metric), abs=1e-6)
    assert ray.is_initialized()  # it was before


@pytest.mark.usefixtures("connected")
def test_one_that_dies_again_and_again_is_one_sentence_and_finished_folds_stay(
    mortal: EvaluateRequest,
    deaths: Path,
    cohort: Cohort,
    store: FeatureStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_fits, "_MOST_RUNS", 1)
    out = tmp_path / "run"

    def die_later(text: str) -> None:
        if "1 of 2" in text:
            (deaths / "one").touch()

    request = replace(mortal, ray=RayRequest(actors=1, gpus_per_actor=0))
    with pytest.raises(EvaluationError, match=r"fold \w, seed 0 died \(1 run\); look whether memory ran out"):
        evaluate(cohort, store, request, out, die_later)
    assert len(list(out.glob("folds/*/seed0/metrics.json"))) == 1
    report = evaluate(cohort, store, request, out)
    assert report.metrics.test.pcc_slide == report.metrics.test.pcc_slide


@pytest.mark.usefixtures("connected")
def test_the_command_takes_paths_from_where_it_is_run(
    simulated: Path,
    cohort: Cohort,
    store: FeatureStore,
    mmap: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    (tmp_path / "her2st").symlink_to(simulated)
    (tmp_path / "f.zarr").symlink_to(store.path)
    genes = read_counts(cohort["A1"]).genes[:6]
    (tmp_path / "panel.txt").write_text("\n".join(genes))
    words = ["compare", "her2st:her2st", "f.zarr", "--encoders", ENCODER, "--heads", "ridge"]
    words += ["--set", "ridge.alpha=1e4", "--genes", "panel.txt", "--folds", "patient:2", "--out", "run"]
    done = mmap(*words, "--engine", "ray", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("run/rows/*/ridge/*/folds/*/seed0/metrics.json"))) == 2
    again = mmap(*words, cwd=tmp_path)
    assert again.stdout == done.stdout


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin("0.0.1", "/", True)
    with pytest.raises(RequestError, match=r"0\.0\.1 where the run was started"):
        origin.check_version()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "auto"], "--address is for --engine ray; give both, or neither."),
        (["--gpus-per-job", "1"], "--gpus-per-job is for --engine ray; give both, or neither."),
        (["--engine", "slurm"], "--engine slurm is not known; give local or ray."),
        (["--engine", "ray", "--gpus-per-job", "1.5"], "--gpus-per-job 1.5: give 0, a part of a GPU"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate --encoder", "compare --encoders"])
def test_what_cannot_be_meant_is_one_sentence(
    command: str,
    words: list[str],
    said: str,
    tiny,
    mmap: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    name, option = command.split()
    done = mmap(name, f"her2st:{tiny.her2st}", tiny.store, option, ENCODER, *words, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")
    assert not (tmp_path / "run").exists()


def sized(
    nodes: list[dict[str, float]], device: str, fits: int, request: RayRequest | None = None
) -> tuple[ActorPlan, int]:
    """What a fit asks for; without counts it needs 3 GB."""
    shared = SharedInputs(Cohort((CohortSlide("A1"),), "here"), Path("s.zarr"), {})
    jobs = plan_jobs(fit_request(ENCODER, "mmap"), FOLDS * fits, [0], Path("x"))
    size = ray_fits._size(request or RayRequest(), nodes, device, shared, jobs)
    return size.actor, size.memory


GB = 1e9
LARGE: dict[str, float] = {"CPU": 16.0, "GPU": 1.0, "memory": 100 * GB}
FOLDS = [Fold("a", Split(("A1",), (), ("B1",)))]


@pytest.mark.parametrize(
    ("nodes", "device", "fits", "request_", "expected"),
    [
        ([LARGE], "auto", 10, RayRequest(), (1, 16, 1.0)),  # one GPU: one fit at a time, with all cores
        ([LARGE], "cpu", 10, RayRequest(), (10, 1, 0.0)),
        ([LARGE], "cpu", 4, RayRequest(), (4, 4, 0.0)),
        ([LARGE], "cpu", 10, RayRequest(actors=2), (2, 8, 0.0)),
        ([LARGE], "auto", 10, RayRequest(gpus_per_actor=0.5), (2, 8, 0.5)),
        ([LARGE], "cpu", 10, RayRequest(gpus_per_actor=0.5), (10, 1, 0.0)),  # a head that trains on none
        ([{**LARGE, "memory": 10 * GB}], "cpu", 10, RayRequest(), (3, 5, 0.0)),  # memory for three
        ([], "auto", 3, RayRequest(), (1, 1, 0.0)),  # for an autoscaler to bring
    ],
)
def test_fits_share_out_what_there_is(
    nodes: list[dict[str, float]],
    device: str,
    fits: int,
    request_: RayRequest,
    expected: tuple[int, int, float],
) -> None:
    actor, memory = sized(nodes, device, fits, request_)
    assert actor == ActorPlan(*expected)
    assert memory == 3_000_000_000


def test_a_fit_asks_for_what_a_node_that_can_run_it_has_at_most() -> None:
    head: dict[str, float] = {"CPU": 0.0, "memory": 200 * GB}
    _, memory = sized([head, {"CPU": 8.0, "memory": 2 * GB}], "cpu", 3)
    assert memory == 1_800_000_000
    assert sized([{"CPU": 8.0}], "cpu", 3)[1] == 3_000_000_000


def test_what_nobody_has_is_said(caplog: pytest.LogCaptureFixture) -> None:
    size = ray_fits._Size(ActorPlan(1, 4, 0.0), 3_000_000_000)
    ray_fits._say_if_none_fits(size, [{"CPU": 4.0, "memory": 8 * GB}])
    assert caplog.text == ""
    for node in ({"CPU": 2.0, "memory": 8 * GB}, {"CPU": 4.0, "memory": 2 * GB}):
        caplog.clear()
        ray_fits._say_if_none_fits(size, [node])
        assert "no node of the cluster has 4 CPUs, 3 GB: fits wait for one" in caplog.text


def test_the_device_is_what_the_heads_ask_for() -> None:
    cpu = plan_jobs(fit_request(ENCODER, "ridge"), FOLDS, [0], Path("x"))
    card = plan_jobs(fit_request(ENCODER, "mmap"), FOLDS, [0], Path("x"))
    assert device_of(cpu) == "cpu"
    assert device_of([*cpu, *card]) == "auto"


def test_a_result_that_is_not_seen_here_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_fits, "_SEEN_AFTER_S", 0.0)
    (job,) = plan_jobs(fit_request(ENCODER, "ridge"), FOLDS, [0], tmp_path)
    with pytest.raises(EvaluationError, match=r"fitted on far, and .* give --out in a folder that all nodes"):
        ray_fits._check_seen(job, "far")
    job.out.mkdir(parents=True)
    (job.out / "metrics.json").touch()
    ray_fits._check_seen(job, "far")


def test_what_a_task_raises_is_told_in_one_sentence() -> None:
    (job,) = plan_jobs(fit_request(ENCODER, "ridge"), FOLDS, [0], Path("x"))

    class TaskError(Exception):
        def __init__(self, cause: Exception | None) -> None:
            self.cause = cause

    own = RequestError("on far: f.zarr does not exist.")
    assert ray_fits._as_told(ray, job, TaskError(own)) is own
    lacking = RuntimeError("The remote function failed to import on the worker.\nModuleNotFoundError: ...")
    told = str(ray_fits._as_told(ray, job, TaskError(lacking)))
    assert told == (
        "fold a, seed 0 cannot be fitted on a node of the cluster (The remote function failed to import on"
        " the worker); install this version of mmap-st and what it needs on all nodes."
    )
    told = str(ray_fits._as_told(ray, job, ray.exceptions.RaySystemError("cannot be unpickled\nat length")))
    assert told.startswith("fold a, seed 0 failed on Ray (")
    assert "\n" not in told


def test_a_head_of_this_process_alone_is_refused_before_ray_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_fits, "connected_ray", None)
    request = fit_request(ENCODER, "ridge")
    request = replace(request, method=replace(request.method, local=True))
    jobs = plan_jobs(request, FOLDS, [0], Path("x"))
    shared = SharedInputs(Cohort((CohortSlide("A1"),), "here"), Path("s.zarr"), {})
    with pytest.raises(HeadError, match="write it to a file that all nodes see"):
        next(ray_fits.finished_on_ray(RayRequest(), shared, jobs, jobs, print))
