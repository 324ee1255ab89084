"""Jobs that share a cohort: shards, claimed slides, and how far all of them are."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.errors import RequestError
from mmap_st.extract.engine.planning.sharing_out import Shard, parse_shard, slides_of_shard
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.recipe import encode_name
from mmap_st.extract.store.writing.lock import SlideLock

ENCODER = "timm:test_efficientnet"
ROOT = Path(__file__).resolve().parents[3]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def root(write_section) -> Path:
    for seed, name in enumerate(("A1", "B1", "C1", "D1")):
        root = write_section(name, seed=seed, side=4 + seed)
    return root


def words(root: Path, store: Path) -> tuple[object, ...]:
    return (
        "extract", f"her2st:{root}", store, "--encoder", ENCODER, "--random-weights", "--magnifications", "20,10,5",
        "--precision", "fp32", "--device", "cpu",
    )  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    store = FeatureStore.open(path)
    return {
        f"{name} {mpp}": magnification.embedding().tobytes() + magnification.valid().tobytes()
        for name in store.slides
        for mpp, magnification in store.slide(name).complete(ENCODER).items()
    }


@pytest.fixture
def alone(root: Path, tmp_path: Path, mmap: Command) -> dict[str, bytes]:
    assert mmap(*words(root, tmp_path / "alone.zarr")).returncode == 0
    return contents(tmp_path / "alone.zarr")


def names(shard: tuple[CohortSlide, ...]) -> list[str]:
    return [row.slide for row in shard]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 6))
def test_shards_are_all_slides_once_and_about_as_large(sizes: list[int], count: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, size in enumerate(sizes):
            image = Path(folder) / f"{number}.png"
            image.write_bytes(bytes(size * 1000))
            rows.append(CohortSlide(f"S{number}", image=image))
        cohort = Cohort(tuple(rows), "test")
        shards = [slides_of_shard(cohort, Shard(index, count)) for index in range(count)]
    assert sorted(name for shard in shards for name in names(shard)) == sorted(cohort.names)
    bytes_of = [sum(sizes[int(name[1:])] for name in names(shard)) for shard in shards]
    assert max(bytes_of) - min(bytes_of) <= max(sizes, default=0)


@pytest.mark.parametrize("text", ["", "1", "0/0", "2/2", "-1/2", "a/b", "1/2/3", "0 / 2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--shard"):
        parse_shard(text)


def test_shards_together_are_the_whole(
    root: Path, tmp_path: Path, mmap: Command, alone: dict[str, bytes]
) -> None:
    for index in range(6):
        shown = mmap(*words(root, tmp_path / "n.zarr"), "--shard", f"{index}/6")
        assert shown.returncode == 0, shown.stdout + shown.stderr
    assert contents(tmp_path / "n.zarr") == alone


def test_jobs_that_claim_slides_share_them_also_where_one_is_killed(
    root: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    command = [sys.executable, "-m", "mmap_st", *map(str, words(root, tmp_path / "n.zarr")), "--claim"]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    while not (tmp_path / "n.zarr.journals").exists():
        assert jobs[0].poll() is None or jobs[1].poll() is None
        time.sleep(0.05)
    jobs[0].kill()
    shown = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs[1:]] == [0, 0], shown
    assert contents(tmp_path / "n.zarr") == alone


def test_a_slide_of_another_job_fails_or_is_waited_for(root: Path, tmp_path: Path, mmap: Command) -> None:
    store = tmp_path / "f.zarr"
    with SlideLock(store, encode_name("B1")):
        shown = mmap(*words(root, store))
        assert shown.returncode == 1
        assert "is writing it" in shown.stdout
        status = mmap(*words(root, store), "--status")
        assert status.returncode == 0
        assert "3 done, 1 in flight" in status.stdout
        assert "0 of 75" in status.stdout
    status = mmap(*words(root, store), "--status")
    assert "3 done, 1 failed" in status.stdout
    assert "is writing it" in status.stdout
    assert mmap(*words(root, store), "--claim").returncode == 0
    assert "slides: 4 done" in mmap(*words(root, store), "--status").stdout


def test_the_status_of_what_has_not_begun(root: Path, tmp_path: Path, mmap: Command) -> None:
    status = mmap(*words(root, tmp_path / "none.zarr"), "--status")
    assert status.returncode == 0
    assert "slides: 4 left" in status.stdout
    assert f"{3 * (16 + 25 + 36 + 49)} windows left" in status.stdout
    assert "none.zarr does not exist: no job has begun" in " ".join(status.stderr.split())
    assert not (tmp_path / "none.zarr").exists()


def test_the_status_says_why_slides_are_skipped(root: Path, tmp_path: Path, mmap: Command) -> None:
    table = tmp_path / "c.csv"
    assert mmap("cohort", f"her2st:{root}", "--out", table).returncode == 0
    with table.open("a") as file:
        file.write("Z1" + "," * table.read_text().splitlines()[0].count(",") + "\n")
    status = mmap(
        *words(root, tmp_path / "n.zarr")[:1], table, *words(root, tmp_path / "n.zarr")[2:], "--status"
    )
    assert "slides: 4 left, 1 skipped (no image or no spots)" in status.stdout


def run_script(root: Path, store: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What docs/clusters/slurm.sh does, with SLURM's variables."""
    given = {
        "COHORT": f"her2st:{root}", "STORE": str(store), "ENCODER": ENCODER,
        "OPTIONS": "--random-weights --precision fp32 --device cpu",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    script = ROOT / "docs" / "clusters" / "slurm.sh"
    return subprocess.run(
        ["bash", script], env=os.environ | given | environment, capture_output=True, text=True, check=False
    )


def test_the_script_for_slurm_embeds_a_part_each(root: Path, tmp_path: Path, alone: dict[str, bytes]) -> None:
    for index in range(2):
        done = run_script(
            root, tmp_path / "n.zarr", SLURM_ARRAY_TASK_ID=str(index), SLURM_ARRAY_TASK_COUNT="2"
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert contents(tmp_path / "n.zarr") == alone
    assert run_script(root, tmp_path / "n.zarr").returncode != 0  # outside of an array


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """SLURM of one node, this machine; the environment that leads to it."""
    folder = tmp_path_factory.mktemp("slurm")
    user, host = getpass.getuser(), socket.gethostname().split(".")[0]
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("", 0))
            ports.append(free.getsockname()[1])
    (folder / "slurm.conf").write_text(
        f"ClusterName=one\nSlurmctldHost={host}(127.0.0.1)\nAuthType=auth/none\nCredType=cred/none\n"
        f"SlurmUser={user}\nSlurmdUser={user}\nSlurmctldPort={ports[0]}\nSlurmdPort={ports[1]}\n"
        f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool\n"
        f"SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd.pid\n"
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n"
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nReturnToService=2\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN\n"
        f"PartitionName=main Nodes={host} Default=YES State=UP\n"
    )
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
    }
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    with ExitStack() as daemons:
        for name in ("slurmctld", "slurmd"):
            log = daemons.enter_context((folder / f"{name}.log").open("w"))
            daemon = subprocess.Popen([name, "-D"], env=environment, stdout=log, stderr=log)
            daemons.callback(daemon.wait)
            daemons.callback(daemon.terminate)
        for _ in range(150):
            shown = subprocess.run(
                ["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True
            )
            if shown.stdout.strip() == "idle":
                break
            time.sleep(0.2)
        else:
            logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
            pytest.fail(f"SLURM does not start: {shown.stderr}\n{logs}")
        yield environment


@pytest.mark.skipif(
    shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None or os.getuid() != 0,
    reason="SLURM is not installed, or this is not root, who may start it",
)
def test_slurm_itself_runs_the_script(
    slurm: dict[str, str], root: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    script = ROOT / "docs" / "clusters" / "slurm.sh"
    given = slurm | {
        "COHORT": f"her2st:{root}", "STORE": str(tmp_path / "n.zarr"), "ENCODER": ENCODER,
        "OPTIONS": "--random-weights --precision fp32 --device cpu", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    smaller = ["--gpus=0", "--cpus-per-task=1", "--mem=1000", "--array=0-1"]
    done = subprocess.run(
        ["sbatch", "--wait", "--export=ALL", *smaller, script],
        env=given, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = "\n".join(file.read_text() for file in tmp_path.glob("slurm-*.out"))
    assert done.returncode == 0, done.stderr + said
    assert "shard 0/2" in said
    assert "shard 1/2" in said
    assert contents(tmp_path / "n.zarr") == alone


@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not installed")
def test_the_rule_for_snakemake_embeds_all(root: Path, tmp_path: Path, alone: dict[str, bytes]) -> None:
    config = {
        "cohort": f"her2st:{root}", "store": str(tmp_path / "n.zarr"), "encoder": ENCODER, "shards": "3",
        "options": "--random-weights --precision fp32 --device cpu",
    }  # fmt: skip
    rule = ROOT / "docs" / "clusters" / "Snakefile"
    subprocess.run(
        ["snakemake", "-s", rule, "--cores", "2", "--resources", "gpu=1", "--config"]
        + [f"{key}={value}" for key, value in config.items()],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        check=True,
        capture_output=True,
    )
    assert contents(tmp_path / "n.zarr") == alone
