"""Names are shown as they are: none of them is a command to a terminal, to rich, to matplotlib or to a reader."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import mmap_st as mm
from mmap_st.commands import console
from mmap_st.errors import MmapError, RequestError, printable
from mmap_st.report.figure import new_figure, plain, save_figure, wrapped
from mmap_st.workflows.display import Display, LogView, NotebookView, TerminalView, warn_left_out, warn_user
from tests.commands.hostile import ENCODER, TRAPS, unseen, write_cohort_of_traps

PACKAGE = Path(mm.__file__).parent


@dataclass(frozen=True)
class Traps:
    """A cohort, a store and a folder for more, in a folder that is a trap itself."""

    cohort: Path
    store: Path
    folder: Path


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Traps:
    from mmap_st.extract.imports import ImportRequest, import_features

    folder = tmp_path_factory.mktemp("traps") / "[red]\x1b[1m"
    made = Traps(write_cohort_of_traps(folder), folder / "features.zarr", folder)
    rng = np.random.default_rng(1)
    for name in TRAPS:
        np.save(folder / "features.npy", rng.normal(size=(36, 8)).astype(np.float32))
        request = ImportRequest(
            ENCODER, 0.5, folder / "features.npy", slide=name, cohort=mm.read_cohort(made.cohort)
        )
        report = import_features(request, made.store)
        assert not report.failed
    return made


def check_shown(text: str, *names: str) -> None:
    """Nothing unseen is in an output, and these names are, letter by letter."""
    assert unseen(text) == []
    for name in names:
        assert printable(name) in text


PATIENTS = tuple(f"P{name}" for name in TRAPS)
FIT = ("--encoder", ENCODER, "--head", "ridge", "--set", "alpha=1e4", "--genes", "all")
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cohort": (("cohort", "{cohort}", "--out", "{folder}/new.csv"), (*TRAPS, *PATIENTS)),
    "check": (("cohort", "check", "{cohort}"), (*TRAPS, *PATIENTS)),
    "info": (("info", "{store}"), (*TRAPS, *PATIENTS, ENCODER, "{store}")),
    "prototypes": (("prototypes", "{store}", "--encoder", ENCODER), (*TRAPS, "{store}")),
    "no encoder": (("prototypes", "{store}", "--encoder", "\x1b[31m[red]"), ("\x1b[31m[red]",)),
    "import": (
        ("import", "{store}", "--slide", TRAPS[0], "--encoder", ENCODER, "--mpp", "1", "--features",
         "{folder}/features.npy"),
        (TRAPS[0],),
    ),
    "import of another": (
        ("import", "{store}", "--slide", "\x1b[31m", "--encoder", "x", "--mpp", "1", "--features",
         "{folder}/features.npy"),
        ("\x1b[31m",),
    ),
    "fit-head": (
        ("fit-head", "{cohort}", "{store}", *FIT, "--test", "slide={first}", "--out", "{folder}/run"),
        ("{folder}",),
    ),
    "fit-head of no slide": (
        ("fit-head", "{cohort}", "{store}", *FIT, "--test", "slide=\x1b[31mno", "--out", "{folder}/n"),
        ("\x1b[31mno",),
    ),
    "predict": (("predict", "{folder}/run", "{store}", "--out", "{folder}/p"), ("{folder}",)),
    "info of a run": (("info", "{folder}/run"), (*TRAPS, *PATIENTS, ENCODER)),
    "predict no slide": (
        ("predict", "{folder}/run", "{store}", "--slides", "\x1b[0m", "--out", "{folder}/q"),
        ("\x1b[0m",),
    ),
    "report": (
        ("report", "{folder}/run", "--out", "{folder}/figures", "--store", "{store}"),
        ("{folder}",),
    ),
    "report of no gene": (
        ("report", "{folder}/run", "--out", "{folder}/figures", "--genes", "\x1b[0m[/]"),
        ("\x1b[0m[/]", *TRAPS[:0]),
    ),
    "evaluate": (
        ("evaluate", "{cohort}", "{store}", *FIT, "--folds", "patient:2", "--jobs", "1", "--out", "{folder}/e"),
        ("{folder}",),
    ),
    "compare": (
        ("compare", "{cohort}", "{store}", "--encoders", ENCODER, "--heads", "mean", "--genes", "all", "--folds",
         "patient:2", "--jobs", "1", "--out", "{folder}/c"),
        (ENCODER, "{folder}"),
    ),
}  # fmt: skip
REFUSED = {
    "no encoder": 2,
    "import of another": 1,
    "fit-head of no slide": 2,
    "predict no slide": 2,
    "report of no gene": 2,
}


@pytest.mark.parametrize("key", COMMANDS)
def test_what_commands_print_of_names(key: str, traps: Traps, mmap: Callable) -> None:
    places = {"{cohort}": traps.cohort, "{store}": traps.store, "{folder}": traps.folder, "{first}": TRAPS[0]}

    def fill(word: str) -> str:
        for place, stands_for in places.items():
            word = word.replace(place, str(stands_for))
        return word

    words, names = COMMANDS[key]
    done = mmap("-v", *map(fill, words))
    assert done.returncode == REFUSED.get(key, 0), done
    assert "Traceback" not in done.stderr
    check_shown(done.stdout + done.stderr, *map(fill, names))


def test_what_is_written_of_names(traps: Traps) -> None:
    """After the commands above: tables for people have no markup of names, and files hold the names whole."""
    text = (traps.folder / "c" / "compare.md").read_text()
    check_shown(text)
    assert "\\[bold\\]$e^{$" in text
    assert "[bold]" not in text
    assert mm.read_cohort(traps.cohort).names == TRAPS
    card = json.loads((traps.folder / "run" / "head.json").read_text())
    assert set(card["panel"]["genes"]) == set(TRAPS)


def test_what_objects_show_of_names(traps: Traps, capsys: pytest.CaptureFixture[str]) -> None:
    cohort, run = mm.read_cohort(traps.cohort), mm.load_head(traps.folder / "run")
    for shown in (cohort, run):
        assert unseen(repr(shown)) == []
        assert "[red]\\x1b[1m" in repr(shown)
    with pytest.raises(RequestError) as caught:
        cohort["\x1b[0m"]
    check_shown(str(caught.value), "\x1b[0m")
    adata = run.predict(traps.store, TRAPS[0], progress=False)
    assert list(adata.var_names) == list(run.panel)
    save_figure(mm.pl.genes(adata, genes=list(TRAPS)), traps.folder / "genes.png")
    save_figure(mm.pl.prototypes(traps.store, TRAPS[11]), traps.folder / "prototypes.png")
    assert Image.open(traps.folder / "genes.png").width > 1000


def test_pictures_of_spots_take_every_name(traps: Traps) -> None:
    from mmap_st.extract.engine import preview_cohort

    cohort = mm.read_cohort(traps.cohort)
    drawn = preview_cohort(cohort, None, traps.folder / "pictures")
    assert list(drawn.written) == list(TRAPS)


@pytest.mark.parametrize("name", TRAPS)
def test_figures_show_names_letter_by_letter(name: str, tmp_path: Path) -> None:
    figure = new_figure(8, 2)
    axes = figure.subplots()
    assert axes.set_title(plain(name))._preprocess_math(plain(name)) == (printable(name), False)
    lines = wrapped(name, 0.1).split("\n")
    for line in lines:
        assert axes.set_title(line)._preprocess_math(line)[1] is False
    save_figure(figure, tmp_path / "a.png")


@pytest.mark.parametrize("name", TRAPS)
def test_progress_shows_names_as_they_are(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmap_st.workflows.display.LOG_SECONDS", -1.0)
    monkeypatch.setattr("mmap_st.workflows.display.NOTEBOOK_SECONDS", -1.0)
    seen: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            seen.append(content["text/plain"])

    def display(content: dict[str, str], **_: object) -> Handle:
        seen.append(content["text/plain"])
        return Handle()

    file = io.StringIO()
    # The bar comes last: while it is there, rich shows above it what is printed.
    for make in (
        LogView,
        lambda: NotebookView(display),
        lambda: TerminalView(Console(file=file, force_terminal=True, width=200, color_system=None)),
    ):
        view = make()
        progress = Display(view)
        progress(f"drawing {name}")
        progress.start(1, 10)
        progress.start_item(name)
        progress.show_details(name)
        progress.note(name)
        if isinstance(view, TerminalView):
            view._progress.refresh()
        view.close()
    printed = capsys.readouterr().err
    check_shown(printed, name)
    check_shown("\n".join(seen), name)
    assert printable(name) in file.getvalue()
    assert name == printable(name) or name not in file.getvalue()


@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.parametrize("terminal", [False, True])
def test_tables_and_messages_show_names_as_they_are(
    terminal: bool, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*, stderr: bool) -> Console:
        stream = sys.stderr if stderr else sys.stdout
        # Without colours and with a width: what rich itself adds is letters and line ends alone.
        return Console(file=stream, force_terminal=terminal, color_system=None, width=200, highlight=False)

    monkeypatch.setattr(console, "_console", made)
    console.show_table(f"of {name}", (f"c{name}", "b"), [(name, f"1 {name}")])
    console.show_reasons(f"r {name}", {name: f"is {name}"}, f"w {name}")
    console.show_findings(f"f {name}", [(name, f"found {name}", f"bad {name}")])
    console.say(name)
    console.warn(name)
    console.fail(name)
    console.show_paths([Path(name)])
    output = capsys.readouterr()
    check_shown(
        output.out + output.err,
        *(
            f"{before}{name}"
            for before in ("of ", "c", "1 ", "r ", "is ", "w ", "f ", "found ", "bad ", "note: ")
        ),
        f"error: {name}",
    )
    assert output.err.count("\n") == 2


@pytest.mark.parametrize("name", TRAPS)
def test_logs_and_warnings_show_names_as_they_are(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    console.set_up_logging(verbose=True)
    try:
        raise ValueError(name)
    except ValueError:
        logging.getLogger("mmap_st.test").warning("slide %s", name, exc_info=True)
    printed = capsys.readouterr().err
    check_shown(printed, f"WARNING slide {name}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_left_out({name: f"bad {name}"}, {name: f"missing {name}"})
        warn_user(f"about {name}")
    texts = [str(one.message) for one in caught]
    check_shown("\n".join(texts), name, f"bad {name}", f"missing {name}")
    assert texts[0].count("\n") == 1
    check_shown(str(MmapError(f"no slide {name}")))


def test_legitimate_letters_stay(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("Müller 3", "患者-1", "نمونه\u200cها", "👩\u200d🔬", "HLA-A*02:01", "a\u00a0b", "x\u0301")
    for name in names:
        assert printable(name) == name
        console.say(name)
    assert capsys.readouterr().out.splitlines() == list(names)
    assert printable("\udc80.csv") == "\\udc80.csv"  # a file name that is not UTF-8


def calls_of(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            yield called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", ""), node


def sources() -> Iterator[tuple[str, ast.AST]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        place = file.relative_to(PACKAGE).as_posix()
        if not place.startswith((".", "tests/", "benchmarks/", "docs/")):
            yield place, ast.parse(file.read_text("utf-8"))


#: Where things are printed; what of it is not a name, or passes through `printable`, is tested above.
PRINTING = {"commands/console.py", "workflows/display.py", "cli.py", "data/hdf5_probe.py"}


def test_nothing_is_printed_elsewhere() -> None:
    """A new table or message passes through `mmap_st.commands.console`, and progress through `Display`."""
    found = set()
    for place, tree in sources():
        if any(isinstance(n, ast.ImportFrom) and str(n.module).startswith("rich") for n in ast.walk(tree)):
            found.add(place)
        for name, call in calls_of(tree):
            if name in ("print", "echo", "secho") or ast.unparse(call.func).startswith("sys.std"):
                found.add(place)
    assert found <= PRINTING


def test_every_name_in_a_figure_is_plain() -> None:
    """Titles, labels and notes that are not constants go through `plain` or `wrapped`."""
    wanted = {
        "set_title",
        "suptitle",
        "annotate",
        "text",
        "set_xlabel",
        "set_ylabel",
        "set_yticks",
        "set_xticks",
    }
    names = {"name", "gene", "genes", "key", "encoder", "variant", "title", "slide", "row", "first", "second"}
    for place, tree in sources():
        for called, call in calls_of(tree) if place.startswith("report/") else ():
            if called not in wanted:
                continue
            for argument in call.args:
                shown = argument.elt if isinstance(argument, ast.ListComp) else argument
                safe = {
                    id(inner)
                    for function, wrapping in calls_of(shown)
                    if function in ("plain", "wrapped")
                    for inner in ast.walk(wrapping)
                }
                bare = {
                    node.id for node in ast.walk(shown) if isinstance(node, ast.Name) and id(node) not in safe
                }
                assert not bare & names, (
                    f"{place}:{call.lineno}: {ast.unparse(call)} shows a name; use plain()"
                )


def test_a_terminal_that_lacks_letters_gets_their_numbers(traps: Traps) -> None:
    command = [sys.executable, "-m", "mmap_st", "info", str(traps.store)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\\u202ecba" in done.stdout
