"""Fits as tasks of Ray: the same numbers, also where their processes die."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import read_counts
from mmap_st.data.splits import Fold, Split
from mmap_st.errors import EvaluationError, RequestError
from mmap_st.extract.engine import ActorPlan, RayRequest
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.evaluation import ray_fits
from mmap_st.head.evaluation.ablations import evaluate
from mmap_st.head.evaluation.fold_jobs import device_of, plan_jobs
from mmap_st.head.evaluation.folder import EvaluateRequest
from mmap_st.head.runs.request import fit_request

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
    return EvaluateRequest(fit, jobs=1)


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
    for name in ("first", "second"):
        (deaths / name).touch()
    said: list[str] = []
    ray_request = RayRequest(actors=2, gpus_per_actor=0)
    with caplog.at_level("WARNING"):
        there = evaluate(cohort, store, replace(mortal, ray=ray_request), tmp_path / "there", said.append)
    assert not list(deaths.iterdir())
    assert caplog.text.count("seed 0 died; the fit is run again") == 2
    assert there.failed_folds == {}
    assert said[-1].endswith("5 of 5 fits, about 0 s left")
    assert "5 fits on Ray, 1 CPU each" in said
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
    monkeypatch.setattr(ray_fits, "_MOST_DEATHS", 1)
    out = tmp_path / "run"

    def die_later(text: str) -> None:
        if "1 of 5" in text:
            (deaths / "one").touch()

    request = replace(mortal, ray=RayRequest(actors=1, gpus_per_actor=0))
    with pytest.raises(EvaluationError, match=r"fold \w, seed 0 died, 1 time; look whether memory ran out"):
        evaluate(cohort, store, request, out, die_later)
    assert len(list(out.glob("folds/*/seed0/metrics.json"))) in (1, 2)
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
    words = ["compare", "her2st:her2st", "f.zarr", "--encoders", ENCODER, "--heads", "ridge,mean"]
    words += ["--set", "ridge.alpha=1e4", "--genes", "panel.txt", "--folds", "patient:2", "--out", "run"]
    done = mmap(*words, "--engine", "ray", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = mmap(*words, cwd=tmp_path)
    assert again.stdout == done.stdout


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = ray_fits.Origin("0.0.1", "/", True)
    with pytest.raises(RequestError, match=r"0\.0\.1 where the run was started"):
        origin.take_over()


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


def test_a_fit_asks_for_what_the_largest_node_has_at_most() -> None:
    nodes = [{"CPU": 2.0, "memory": 1e9}, {"CPU": 4.0, "memory": 8e9}]
    assert ray_fits._memory(nodes, 3_000_000_000) == 3_000_000_000
    assert ray_fits._memory(nodes, 30_000_000_000) == 7_200_000_000
    assert ray_fits._memory([{"CPU": 2.0}], 3_000_000_000) == 3_000_000_000
    assert ActorPlan(3, 4, 0.0).fits(nodes[1])
    assert not ActorPlan(3, 4, 0.0).fits(nodes[0])
    assert not ActorPlan(3, 1, 0.5).fits(nodes[1])


def test_the_device_is_what_the_heads_ask_for() -> None:
    folds = [Fold("a", Split(("A1",), (), ("B1",)))]
    cpu = fit_request(ENCODER, "ridge")
    card = fit_request(ENCODER, "mmap")
    assert device_of(plan_jobs(cpu, folds, [0], Path("x"))) == "cpu"
    jobs = [*plan_jobs(cpu, folds, [0], Path("x")), *plan_jobs(card, folds, [0], Path("x"))]
    assert device_of(jobs) == "auto"
