"""`mmap view` and `mm.view`: an address, a clean end, and one sentence where there is nothing to show."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest

import mmap_st as mm
from mmap_st.errors import RequestError, SlidesLeftOutWarning
from mmap_st.workflows import viewing
from tests.conftest import Tiny


@pytest.fixture(scope="module")
def predictions(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictions")
    mm.predict(tiny.run, tiny.store, out, cohort=f"her2st:{tiny.her2st}", slides="A1,B1", progress=False)
    return out


def test_it_prints_the_address_and_ends_cleanly(predictions: Path) -> None:
    (predictions / "bad.h5ad").write_bytes(b"nothing")
    words = [sys.executable, "-m", "mmap_st", "view", str(predictions), "--no-browser", "--slide", "B1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = []
        while not (said and said[-1].startswith("http")):
            said.append(process.stdout.readline().strip())
            assert said[-1], process.communicate()
        with urllib.request.urlopen(said[-1], timeout=20) as answer:
            assert b"<title>" in answer.read()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    (predictions / "bad.h5ad").unlink()
    assert "bad" in " ".join(said)
    assert said[-2] == "slides are shown on this machine alone, until Ctrl-C, at"
    assert rest == "the viewer is closed\n"
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slide", "X9"], "--slide X9: there is no such slide to show; there are A1, B1."),
        (["--gene", "NOGENE"], "NOGENE is not on the panel"),
        (["--genes", ","], "names nothing"),
        (["--cohort", "nothing.csv"], "nothing.csv"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    words: list[str], said: str, predictions: Path, mmap: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = mmap("view", predictions, "--no-browser", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_place_with_nothing_to_show(
    tmp_path: Path, mmap: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert "does not exist" in mmap("view", tmp_path / "x").stderr
    done = mmap("view", tmp_path)
    assert (done.returncode, "holds no predictions" in done.stderr) == (2, True)


def test_a_port_that_is_taken(
    predictions: Path, mmap: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = mmap("view", predictions, "--no-browser", "--port", port)
    assert (done.returncode, f"--port {port} cannot be listened on" in done.stderr) == (2, True)
    with pytest.raises(RequestError, match="from 1 to 65535"):
        mm.view(predictions, port=70_000)


@pytest.mark.parametrize(("wanted", "opens"), [(True, True), (False, False), (None, False)])
def test_a_browser_is_opened_where_someone_looks(
    wanted: bool | None, opens: bool, predictions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    with mm.view(predictions, open_browser=wanted) as viewer:
        assert opened == ([viewer.url] if opens else [])
    monkeypatch.setattr(viewing, "_someone_looks", lambda: True)
    with mm.view(predictions) as viewer:
        assert opened[-1] == viewer.url


def test_a_bad_slide_is_a_warning(predictions: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(predictions, tmp_path / "copy"))
    (folder / "B1.h5ad").write_bytes(b"nothing")
    with pytest.warns(SlidesLeftOutWarning, match="B1"), mm.view(folder, open_browser=False) as viewer:
        assert list(viewer.failed) == ["B1"]


def test_a_store_and_a_run_are_shown(tiny: Tiny) -> None:
    store = mm.FeatureStore(tiny.store)
    for where in (store, tiny.store, str(tiny.run)):
        with mm.view(where, open_browser=False, cohort=f"her2st:{tiny.her2st}") as viewer:
            assert viewer.url in viewer._repr_html_()
    with mm.view(store, genes=["FINE001"], cohort=f"her2st:{tiny.her2st}", open_browser=False):
        pass
    with pytest.raises(RequestError, match="has no genes to show"):
        mm.view(store, genes="FINE001", open_browser=False)
