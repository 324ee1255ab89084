"""What is asked of Ray, without it: options that contradict each other, and how many actors of which size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmap_st.errors import RequestError
from mmap_st.extract.engine.workers.ray_request import ActorPlan, RayRequest, parse_engine, plan_actors
from tests.conftest import TINY, WriteSection


def parsed(**given: Any) -> RayRequest | None:
    words = {"engine": "ray", "address": None, "actors": None, "gpus_per_actor": None, "device": "auto"}
    return parse_engine(**(words | given))


def test_what_is_not_asked_for_is_nothing() -> None:
    assert parsed(engine="local") is None
    assert parsed(engine="local", device="cpu,cpu") is None
    assert parsed() == RayRequest()
    assert parsed(address="auto", actors=3, gpus_per_actor=0.5) == RayRequest("auto", 3, 0.5)
    assert parsed(device="cpu", gpus_per_actor=0) == RayRequest(gpus_per_actor=0)
    assert parsed(gpus_per_actor=2.0, device="cuda") == RayRequest(gpus_per_actor=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": "dask"}, "--engine dask is not known; give local or ray"),
        ({"engine": "local", "address": "auto"}, "--address is for --engine ray"),
        ({"engine": "local", "actors": 2}, "--actors is for --engine ray"),
        ({"engine": "local", "gpus_per_actor": 0.0}, "--gpus-per-actor is for --engine ray"),
        ({"address": " "}, "--address is empty"),
        ({"address": "ray://head:10001"}, "give auto, on a machine of the cluster"),
        ({"actors": 0}, "give at least one"),
        ({"device": "cpu,cpu"}, "names devices of one machine"),
        ({"device": "all"}, "names devices of one machine"),
        ({"device": "cuda:1"}, "names devices of one machine"),
        ({"gpus_per_actor": 1.5}, "a part of a GPU such as 0.5, or whole ones"),
        ({"gpus_per_actor": -1.0}, "a part of a GPU such as 0.5, or whole ones"),
        ({"gpus_per_actor": float("nan")}, "a part of a GPU such as 0.5, or whole ones"),
        ({"gpus_per_actor": float("inf")}, "a part of a GPU such as 0.5, or whole ones"),
        ({"device": "cpu", "gpus_per_actor": 0.5}, "are at odds"),
        ({"device": "cuda", "gpus_per_actor": 0.0}, "are at odds"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parsed(**given)


GPUS = [{"CPU": 8.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}]
CPUS = [{"memory": 1.0}, {"CPU": 4.0}, {"CPU": 64.0}]


@pytest.mark.parametrize(
    ("request_", "nodes", "workers", "device", "planned"),
    [
        (RayRequest(), GPUS, None, "auto", (6, 8, 1.0)),
        (RayRequest(), GPUS, None, "cuda", (6, 8, 1.0)),
        (RayRequest(gpus_per_actor=0.5), GPUS, None, "auto", (12, 4, 0.5)),
        (RayRequest(gpus_per_actor=0.4), GPUS, None, "auto", (12, 4, 0.4)),  # one GPU holds two of them
        (RayRequest(gpus_per_actor=2), GPUS, None, "auto", (3, 16, 2.0)),
        (RayRequest(), GPUS, 2, "auto", (6, 2, 1.0)),
        (RayRequest(), GPUS, 12, "auto", (3, 12, 1.0)),
        (RayRequest(actors=3), GPUS, None, "auto", (3, 16, 1.0)),
        (RayRequest(), GPUS, None, "cpu", (3, 16, 0.0)),
        (RayRequest(), [{"CPU": 2.0, "GPU": 8.0}], None, "auto", (2, 1, 1.0)),
        (RayRequest(), CPUS, None, "auto", (4, 16, 0.0)),
        (RayRequest(), CPUS, 4, "auto", (17, 4, 0.0)),
        (RayRequest(), [{"CPU": 2.0}], None, "auto", (1, 2, 0.0)),
        (RayRequest(actors=2), [{"CPU": 2.0}], None, "auto", (2, 1, 0.0)),
        (RayRequest(actors=3), [{"CPU": 2.0}], None, "auto", (3, 1, 0.0)),
        (RayRequest(actors=5), [{"CPU": 0.0}], 8, "cuda", (5, 8, 1.0)),  # for an autoscaler to bring
        (RayRequest(actors=5), [], None, "auto", (5, 1, 0.0)),
    ],
)
def test_actors_take_what_there_is(
    request_: RayRequest,
    nodes: list[dict[str, float]],
    workers: int | None,
    device: str,
    planned: tuple[int, int, float],
) -> None:
    assert plan_actors(request_, nodes, workers, device, 1000) == ActorPlan(*planned)


def test_there_are_no_more_actors_than_slides() -> None:
    assert plan_actors(RayRequest(), GPUS, None, "auto", 2) == ActorPlan(2, 16, 1.0)
    assert plan_actors(RayRequest(actors=9), CPUS, 4, "auto", 2) == ActorPlan(2, 4, 0.0)


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "said"),
    [
        ([], None, "auto", "no node of the cluster has 1 CPU now"),
        ([{"CPU": 4.0}], 8, "auto", "no node of the cluster has 8 CPUs now"),
        ([{"CPU": 4.0}], None, "cuda", "no node of the cluster has 1 CPU and 1 GPU now"),
    ],
)
def test_a_cluster_without_room_is_refused_unless_actors_are_asked_for(
    nodes: list[dict[str, float]], workers: int | None, device: str, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        plan_actors(RayRequest(), nodes, workers, device, 3)


def test_without_ray_it_says_how_to_get_it(
    write_section: WriteSection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mmap: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = mmap(
        "extract", f"her2st:{write_section()}", tmp_path / "s.zarr", "--encoder", TINY, "--random-weights",
        "--mpp", "1", "--engine", "ray",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --engine ray needs the package ray: `pip install 'mmap-st[ray]'`."
    ]
    assert not (tmp_path / "s.zarr").exists()


def test_ray_is_imported_for_nobody_else() -> None:
    code = (
        "import sys, mmap_st.cli, mmap_st.workflows.embedding, mmap_st.extract.engine.extraction\n"
        "import mmap_st.extract.engine.workers.ray_workers, mmap_st.head.evaluation.ray_fits\n"
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
