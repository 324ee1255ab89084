"""The commands, as a user types them: what they print, where, and their exit status."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmap_st.errors import RequestError
from mmap_st.workflows.demo import held_out_patients, run_demo
from mmap_st.workflows.simulation import SimulationSettings

Command = Callable[..., subprocess.CompletedProcess[str]]


def process(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmap_st", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_command() -> None:
    shown = process("--help")
    assert shown.returncode == 0
    commands = "download cohort extract import prototypes fit-head predict report info pack demo"
    for command in commands.split():
        assert command in shown.stdout
    assert process("--version").stdout.startswith("mmap-st 0.")


def test_a_process_says_and_ends_as_a_command_in_this_one(mmap: Command, tmp_path: Path) -> None:
    """The other tests run commands in this process; README's run in processes of their own."""
    words = ("info", tmp_path / "no.zarr")
    found, expected = process(*words), mmap(*words)
    assert (found.returncode, found.stdout, found.stderr) == (2, "", expected.stderr)
    assert expected.returncode == 2


def test_the_commands_one_after_the_other(mmap: Command, simulated: Path, tmp_path: Path) -> None:
    made = mmap("cohort", f"her2st:{simulated}", "--out", "out/cohort.csv", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == "out/cohort.csv"
    assert "5 slides" in made.stdout

    tiny = ("--encoder", "timm:test_efficientnet")
    extract = (
        "extract",
        "out/cohort.csv",
        "out/f.zarr",
        *tiny,
        "--random-weights",
        "--magnifications",
        "20,10",
    )
    done = mmap(*extract, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5 embedded" in done.stdout
    assert "enlarged" in done.stderr
    assert done.stdout.splitlines()[-1] == "out/f.zarr"
    again = mmap(*extract, cwd=tmp_path)
    assert "5 complete before; 0 windows" in again.stdout

    built = mmap("prototypes", "out/f.zarr", *tiny, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "FAISS on" in built.stdout
    assert "built" in built.stdout

    fit = ("fit-head", "out/cohort.csv", "out/f.zarr", *tiny, "--test", "patient=B", "--genes", "mean:10")
    run = mmap(*fit, "--set", "epochs=2", "--set", "width=16", "--out", "out/run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "training mean" in run.stdout
    assert run.stdout.splitlines()[-1] == "out/run/metrics.json"
    assert (tmp_path / "out" / "run" / "metrics.json").is_file()

    predicted = mmap("predict", "out/run", "out/f.zarr", "--out", "out/p", "--slides", "C1,D1", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stdout.splitlines() == ["out/p/C1.h5ad", "out/p/D1.h5ad"]

    drawn = mmap("report", "out/run", "--out", "out/r", "--store", "out/f.zarr", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.splitlines() == [
        "out/r/B1_maps.png",
        "out/r/B1_prototypes.png",
        "out/r/report.html",
    ]

    shown = mmap("info", "out/f.zarr", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("complete") == 10

    # A failed slide: the others are done, a table says why, and the exit status is 1.
    (tmp_path / "bad.csv").write_text((tmp_path / "out" / "cohort.csv").read_text())
    text = (tmp_path / "out" / "cohort.csv").read_text().replace("A1_HE.jpg", "gone.jpg")
    (tmp_path / "out" / "bad.csv").write_text(text)
    failed = mmap(
        "extract", "out/bad.csv", "out/g.zarr", *tiny, "--random-weights", "--mpp", "2", cwd=tmp_path
    )
    assert failed.returncode == 1
    assert "4 embedded" in failed.stdout
    assert "A1" in failed.stdout
    assert "does not exist" in failed.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("extract", "her2st:{sim}", "{tmp}/f.zarr", "--encoder", "efficientnet-lite", "--mpp", "1"),
         "did you mean efficientnet-lite0"),
        (("extract", "her2st:{sim}", "{tmp}/f.zarr", "--encoder", "efficientnet-lite0"), "Give --magnifications"),
        (("extract", "{tmp}/no.csv", "{tmp}/f.zarr", "--encoder", "efficientnet-lite0", "--mpp", "1"),
         "does not exist"),
        (("extract", "her2st:{sim}", "{tmp}/f.zarr", "--encoder", "ctranspath", "--mpp", "1"),
         "needs --weights FILE"),
        (("extract", "her2st:{sim}", "{tmp}/f.zarr", "--encoder", "efficientnet-lite0", "--mpp", "1", "--spots", "100"),
         "--spots 100: give grid:100"),
        (("info", "{tmp}/no.zarr"), "is not a feature store"),
        (("fit-head", "her2st:{sim}", "{tmp}/no.zarr", "--encoder", "x", "--out", "{tmp}/run", "--head", "rige"),
         "did you mean ridge"),
        (("prototypes", "{tmp}/no.zarr", "--encoder", "x", "--clusters", "some"), "give auto or a number"),
        (("predict", "{tmp}", "{tmp}/no.zarr", "--out", "{tmp}/p"), "is not a feature store"),
        (("cohort", "her2st:{tmp}/nowhere", "--out", "{tmp}/c.csv"), "does not exist; her2st: needs"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_met_are_one_sentence_and_exit_2(
    mmap: Command, simulated: Path, tmp_path: Path, words: tuple[str, ...], part: str
) -> None:
    shown = mmap(*(word.format(sim=simulated, tmp=tmp_path) for word in words))
    assert shown.returncode == 2
    assert part in shown.stderr
    assert shown.stderr.startswith("error: ")
    assert len(shown.stderr.splitlines()) == 1
    assert "Traceback" not in shown.stderr + shown.stdout


def test_a_grid_is_previewed_and_then_embedded(mmap: Command, simulated: Path, tmp_path: Path) -> None:
    image = next((simulated / "ST-imgs").rglob("A1_HE.jpg"))
    (tmp_path / "new.csv").write_text(f"slide,image,mpp\nN1,{image},0.7\nN2,{image},\n")
    words = ("extract", "new.csv", "f.zarr", "--encoder", "timm:test_efficientnet", "--spots", "hex:150")
    looked = mmap(*words, "--preview", "look", cwd=tmp_path)
    assert looked.returncode == 1
    assert looked.stdout.splitlines()[-2:] == ["look/N1.jpg", "look/N2.jpg"]
    assert "micrometres per pixel are not known" in looked.stdout
    assert (tmp_path / "look" / "N1.jpg").is_file()
    assert not (tmp_path / "f.zarr").exists()
    (tmp_path / "new.csv").write_text(f"slide,image,mpp\nN1,{image},0.7\n")
    done = mmap(*words, "--random-weights", "--mpp", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 embedded" in done.stdout
    assert "hex:150" in done.stderr
    other = mmap(*words[:-1], "hex:200", "--random-weights", "--mpp", "1", cwd=tmp_path)
    assert other.returncode == 1
    assert "with the spots of hex:150, and those of hex:200 are wanted now" in other.stdout


def test_problems_of_a_cohort_are_listed_and_exit_1(mmap: Command, write_section, tmp_path: Path) -> None:
    root = write_section("A1")
    write_section("B1", counts="\tG\n1x1\t1\n1x1\t2\n")
    shown = mmap("cohort", f"her2st:{root}", "--out", tmp_path / "c.csv")
    assert shown.returncode == 1
    assert "repeats spots: 1x1" in shown.stdout
    assert (tmp_path / "c.csv").is_file()


def test_the_demo_runs_the_whole_pipeline(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / ".mmap-demo").touch()  # of an earlier demo, which is replaced
    (out / "notes.txt").touch()  # a user's own, which stays
    (out / "run").mkdir()
    (out / "run" / "stale").touch()
    small = SimulationSettings(patients=5, size_um=700.0, genes_per_kind=4)
    result = run_demo(out, small, progress=False)
    assert result.metrics.protocol.test == ("B1",)
    assert {"simulate", "extract", "fit-head", "report"} == result.seconds.keys()
    assert [p.name for p in result.pictures] == ["B1_maps.png", "B1_prototypes.png", "report.html"]
    assert all(p.is_file() for p in result.pictures)
    assert not (out / "run" / "stale").exists()
    assert (out / "notes.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(RequestError, match="other things than an earlier demo"):
        run_demo(tmp_path / "other", small, progress=False)


def test_the_demo_holds_out_every_fourth_patient(cohort) -> None:
    assert held_out_patients(cohort) == ["B"]


def test_a_request_that_cannot_be_met_leaves_nothing_behind(
    mmap: Command, simulated: Path, tmp_path: Path
) -> None:
    shown = mmap(
        "extract", f"her2st:{simulated}", tmp_path / "f.zarr", "--encoder", "timm:test_vit", "--mpp", "1"
    )
    assert shown.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_ends_with_a_sentence_and_the_same_command_goes_on(
    mmap: Command, write_section, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    root = write_section("A1", side=12)
    words = ["extract", f"her2st:{root}", str(tmp_path / "f.zarr"), "--encoder", "timm:test_efficientnet",
             "--random-weights", "--mpp", "0.5,1,2", "--chunk", "16"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "mmap_st", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journals = tmp_path / "f.zarr.journals"
    while not any(file.stat().st_size > 1000 for file in journals.rglob("*.rows")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    asked = time.monotonic()
    _, complaint = process.communicate(timeout=120)
    assert time.monotonic() - asked < 10
    if process.returncode == 0:
        pytest.fail("the run ended before it could be stopped")
    assert process.returncode == status
    assert complaint.splitlines()[-1].startswith("error: stopped; what was finished is saved")
    assert "Traceback" not in complaint
    assert mmap(*words).returncode == 0
