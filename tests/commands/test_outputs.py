"""Places that cannot be written to are said in one sentence before any work, by every command that has some."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer

import mmap_st as mm
from mmap_st import cli, workflows
from mmap_st.data.cohort import Cohort, CohortSlide, write_cohort
from mmap_st.errors import RequestError, WriteError
from mmap_st.extract.engine import preview_cohort
from mmap_st.files import check_file_out, check_folder_out, writing
from mmap_st.report.figure import new_figure, save_figure

#: Paths that are read; every other one that a command takes is written, and is tried here.
READ = {
    "--image", "--weights", "--features", "--spots", "--store", "--gene_sets", "RUN",
    "pack RUN|STORE", "merge STORE...", "gc STORE",
    "info RUN|STORE", "prototypes STORE", "predict STORE", "fit-head STORE", "evaluate STORE", "compare STORE",
    "report RUN...", "view STORE|DIR",
}  # fmt: skip
ENCODER = ("--encoder", "efficientnet-lite0")
#: What else each command with an output needs; {out} stands for its output.
LINES = {
    "cohort write --out": ("cohort", "her2st:{her2st}", "--out", "{out}"),
    "cohort check --pictures": ("cohort", "check", "her2st:{her2st}", "--pictures", "{out}"),
    "download --out": ("download", "her2st", "--mirror", "http://127.0.0.1:9", "--out", "{out}"),
    "extract STORE": ("extract", "her2st:{her2st}", "{out}", *ENCODER, "--mpp", "1"),
    "extract --stage": ("extract", "her2st:{her2st}", "{new}", *ENCODER, "--mpp", "1", "--stage", "{out}"),
    "extract --preview": ("extract", "her2st:{her2st}", "{new}", *ENCODER, "--preview", "{out}"),
    "import STORE": ("import", "{out}", "--encoder", "x", "--mpp", "1", "--features", "{her2st}"),
    "fit-head --out": ("fit-head", "her2st:{her2st}", "{store}", *ENCODER, "--out", "{out}"),
    "evaluate --out": ("evaluate", "her2st:{her2st}", "{store}", *ENCODER, "--out", "{out}"),
    "compare --out": ("compare", "her2st:{her2st}", "{store}", "--encoders", ENCODER[1], "--out", "{out}"),
    "predict --out": ("predict", "{run}", "{store}", "--out", "{out}"),
    "pack FILE": ("pack", "{run}", "{out}"),
    "merge --out": ("merge", "{store}", "--out", "{out}"),
    "report --out": ("report", "{run}", "--out", "{out}"),
    "export --out": ("export", "{run}", "--format", "csv", "--out", "{out}"),
    "demo --out": ("demo", "--out", "{out}"),
}
FILES = {"cohort write --out", "pack FILE"}


def outputs(app: typer.Typer = cli.app, words: str = "") -> Iterator[str]:
    """Every path that a command writes, as the key of `LINES`."""
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from outputs(group.typer_instance, f"{group.name} ")
    for command in app.registered_commands:
        assert command.callback is not None
        called = command.name or command.callback.__name__.replace("_", "-")
        for name, annotation in get_type_hints(command.callback, include_extras=True).items():
            kind, *about = get_args(annotation) or (annotation,)
            if Path not in (kind, *get_args(kind)):
                continue
            (info,) = about
            names = getattr(info, "param_decls", None) or (f"--{name}",)
            shown = info.metavar if isinstance(info, typer.models.ArgumentInfo) else names[0]
            key = f"{words}{called} {shown}"
            if not {shown, key} & READ:
                yield key


def test_every_path_that_a_command_takes_is_known() -> None:
    assert set(outputs()) == set(LINES)


class Place:
    """Where something is to be written: made for each test."""

    def __init__(self, folder: Path) -> None:
        (folder / "file").write_text("mine")
        (folder / "folder").mkdir()
        self.folder = folder

    def path(self, how: str, *, file: bool) -> Path:
        return {
            "wrong kind": self.folder / ("folder" if file else "file"),
            "below a file": self.folder / "file" / "a" / "b",
            "no such place": Path("/proc/nope/x"),
            "name too long": self.folder / ("x" * 300) / "y",
            "loop": self._loop(),
            "full": self.folder / "new" / "x",
        }[how]

    def _loop(self) -> Path:
        (self.folder / "loop").symlink_to("loop")
        return self.folder / "loop" / "x"


HOW = ("wrong kind", "below a file", "no such place", "name too long", "loop", "full")


def fill_disk(patch: pytest.MonkeyPatch) -> None:
    """Have every file that is made refuse to hold anything."""

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr("mmap_st.files.TemporaryFile", lambda dir: Full())


def forbid_work(patch: pytest.MonkeyPatch) -> None:
    """Fail where a table, an image, an encoder or a prediction is touched."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work began before the output was looked at")

    names = (
        "mmap_st.data.survey.survey_slide",
        "mmap_st.report.cohort_check.check_slide",
        "mmap_st.extract.engine.preview.open_slide",
        "mmap_st.extract.engine.encoder_request.build_encoder",
        "mmap_st.extract.imports.importing.find_jobs",
        "mmap_st.head.runs.fit.read_cohort_counts",
        "mmap_st.head.evaluation.cross_validation.read_cohort_counts",
        "mmap_st.head.runs.prediction.load_slide",
        "mmap_st.report.run_report.read_prediction",
        "mmap_st.workflows.demo.simulate_cohort",
        "mmap_st.data.download.run.fetch_files",
    )
    # One that is imported while another is replaced would keep what it was replaced by.
    for name in names:
        import_module(name.rpartition(".")[0])
    for name in names:
        patch.setattr(name, fail)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("key", sorted(LINES))
def test_an_output_that_cannot_be_written_is_one_sentence_before_any_work(
    key: str, how: str, tiny, mmap: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Place(tmp_path).path(how, file=key in FILES)
    forbid_work(monkeypatch)
    if how == "full":
        fill_disk(monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    places = {
        "out": out,
        "her2st": tiny.her2st,
        "store": tiny.store,
        "run": tiny.run,
        "new": tmp_path / "n.zarr",
    }
    done = mmap(*(word.format(**places) for word in LINES[key]))
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(out) in line
    assert line.endswith(".")
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


FUNCTIONS: dict[str, Callable] = {
    "embed": lambda tiny, out: mm.embed(
        f"her2st:{tiny.her2st}", out, encoder=ENCODER[1], mpp=1.0, progress=False
    ),
    "fit_head": lambda tiny, out: mm.fit_head(
        f"her2st:{tiny.her2st}", tiny.store, encoder=ENCODER[1], out=out, progress=False
    ),
    "evaluate": lambda tiny, out: mm.evaluate(
        f"her2st:{tiny.her2st}", tiny.store, encoder=ENCODER[1], out=out, progress=False
    ),
    "compare": lambda tiny, out: mm.compare(
        f"her2st:{tiny.her2st}", tiny.store, encoders=[ENCODER[1]], out=out, progress=False
    ),
    "predict": lambda tiny, out: mm.predict(tiny.run, tiny.store, out, progress=False),
    "run_demo": lambda tiny, out: workflows.run_demo(out, progress=False),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_functions_say_so_too(
    name: str, how: str, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Place(tmp_path).path(how, file=False)
    forbid_work(monkeypatch)
    if how == "full":
        fill_disk(monkeypatch)
    with pytest.raises(RequestError) as caught:
        FUNCTIONS[name](tiny, out)
    assert str(out) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "right"),
    [("c.csv", True), ("c.CSV", True), ("c.parquet", True), ("c.txt", True), ("c", True)]
    + [(f"c.{ending}", False) for ending in ("xlsx", "json", "tsv", "pq", "h5ad", "zarr")],
)
def test_a_cohort_is_not_written_under_the_name_of_another_kind_of_file(
    name: str, right: bool, tiny, mmap: Callable, tmp_path: Path
) -> None:
    done = mmap("cohort", f"her2st:{tiny.her2st}", "--out", tmp_path / name)
    assert done.returncode == (0 if right else 2)
    if right:
        assert mm.read_cohort(tmp_path / name).names == ("A1", "B1", "C1")
    else:
        assert "name a .csv or .parquet file" in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_a_device_is_no_file(mmap: Callable, tiny) -> None:
    done = mmap("cohort", f"her2st:{tiny.her2st}", "--out", "/dev/full")
    assert done.returncode == 2
    assert "is a pipe or a device" in done.stderr


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_meanwhile_is_one_sentence_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c.csv"
    out.write_text("mine")
    monkeypatch.setattr("polars.DataFrame.write_csv", full)
    with pytest.raises(WriteError, match=r"c\.csv cannot be written \(No space left on device\)"):
        write_cohort(Cohort((CohortSlide("A"),), "here"), out)
    assert out.read_text() == "mine"
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(WriteError, match="No space left on device"):
        save_figure(new_figure(1, 1), tmp_path / "figures" / "a.png")


def test_pictures_that_find_no_room_are_one_sentence(
    write_section: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = mm.read_cohort(f"her2st:{write_section('A1')}")
    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(WriteError, match=r"--pictures \S+ cannot be written \(No space left on device\)"):
        preview_cohort(cohort, None, tmp_path / "p", option="--pictures")


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.ENOSPC, "free some space or "),
        (errno.EROFS, ""),
        (errno.EDQUOT, "free some space in your quota or "),
    ],
)
def test_a_disk_that_fails_wherever_it_may_is_one_sentence(
    number: int, step: str, mmap: Callable, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/file")

    monkeypatch.setattr("mmap_st.extract.store.list_contents", fail)
    done = mmap("info", tiny.store)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: /somewhere/file cannot be written ({os.strerror(number)});"
        f" {step}use another place, and run the same command again.\n"
    )


#: What helps against an error of the disk: words of it, and words that would be the advice for another.
ADVICE = {
    errno.ENOSPC: ("free some space or name another folder", "permissions"),
    errno.EDQUOT: ("free some space in your quota or name", "permissions"),
    errno.EROFS: ("; name another folder", "space"),
    errno.EACCES: ("change its permissions or name", "space"),
    errno.EPERM: ("change its permissions or name", "space"),
    errno.ENOENT: ("make the folder that it belongs in or name", "space"),
    errno.ENOTDIR: ("; name another folder", "space"),
    errno.EISDIR: ("; name another folder", "space"),
    errno.ELOOP: ("correct the links that lead to it or name", "space"),
    errno.ENAMETOOLONG: ("shorten its name or name", "space"),
    errno.EMFILE: ("raise the limit on open files or name", "space"),
    errno.EBUSY: ("close the program that uses it or name", "space"),
    errno.EIO: ("check the disk or name", "space"),
}


@pytest.mark.parametrize("number", ADVICE, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    "quoted", ["", "failed to write (errno = {}, error message = ...)", "io: (os error {})"]
)
def test_the_advice_is_that_for_the_error(number: int, quoted: str) -> None:
    """Also where a library (HDF5, one in Rust) quotes the number in its text alone."""
    right, wrong = ADVICE[number]
    with pytest.raises(WriteError) as caught, writing(Path("o")):
        raise OSError(quoted.format(number)) if quoted else OSError(number, os.strerror(number))
    said = str(caught.value)
    assert right in said
    assert wrong not in said
    assert said.endswith("another folder, and run the same command again.")


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/proc/nope/c.csv", "make the folder"),
        ("x" * 300 + "/c.csv", "shorten its name"),
        ("loop/c", "the links"),
    ],
)
def test_a_place_that_is_looked_at_is_advised_on_as_well(path: str, right: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(WriteError, match=right) as caught:
        check_file_out(tmp_path / path)
    assert "free some space" not in str(caught.value)


@pytest.mark.parametrize("check", [check_folder_out, check_file_out])
def test_looking_at_a_place_leaves_nothing_there(check: Callable, tmp_path: Path) -> None:
    check(tmp_path / "new" / "place")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_may_be_written_to_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("to" / Path("nothing yet"))
    check_file_out(tmp_path / "file")
    check_folder_out(tmp_path)
    check_folder_out(tmp_path / "link" / "x")
    check_folder_out(tmp_path / ".." / tmp_path.name / "x")
    with writing(tmp_path):
        pass
