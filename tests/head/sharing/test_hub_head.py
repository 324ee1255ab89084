"""A head on the hub is fetched by its known names alone, of one commit, and each refusal is one sentence."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

import mmap_st as mm
from mmap_st.errors import HeadError
from mmap_st.head.runs import read_prediction
from mmap_st.head.sharing import pack_run
from tests.fake_hub import COMMIT, GATED, FakeHub, look_at, running_hub

REPO, OTHER = "org/head", "f" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub(tmp_path / "hub", monkeypatch) as fake:
        yield fake


@pytest.fixture(scope="module")
def packed(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "head.zip"
    pack_run(tiny.run, out)
    return out


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No temporary folder is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


def put_files(hub: FakeHub, run: Path, *, but: tuple[str, ...] = (), **revision: str) -> None:
    for file in run.iterdir():
        if file.is_file() and file.name not in but:
            hub.put(REPO, file.name, file.read_bytes(), **revision)


@pytest.mark.parametrize("form", ["packed", "files"])
def test_it_predicts_as_the_run_does(
    form: str, hub: FakeHub, packed: Path, tiny: Any, tmp_path: Path, mmap: Callable[..., Any]
) -> None:
    hub.put(REPO, "evil.py", b"raise SystemExit")
    hub.put(REPO, "predictions/B1.h5ad", b"no")
    if form == "packed":
        hub.put(REPO, "head.zip", packed.read_bytes())
    put_files(hub, tiny.run)
    done = mmap("predict", f"hf-hub:{REPO}", tiny.store, "--out", tmp_path / "p", "--slides", "B1")
    assert done.returncode == 0, done.stderr
    assert (
        f"hf-hub:{REPO} is the commit {COMMIT} now; hf-hub:{REPO}@{COMMIT} is always this one" in done.stderr
    )
    mm.predict(tiny.run, tiny.store, tmp_path / "q", slides=["B1"], progress=False)
    one, other = (read_prediction(tmp_path / place / "B1.h5ad") for place in "pq")
    np.testing.assert_array_equal(one.X, other.X)
    assert one.uns["mmap"]["head_sha256"] == other.uns["mmap"]["head_sha256"]
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    known = {"README.md", "card.json", "genes.csv", "head.json", "head.safetensors", "metrics.json"}
    assert fetched == ({"head.zip"} if form == "packed" else {"head.zip", *known})
    assert mmap("info", f"hf-hub:{REPO}", "--json").stdout == mmap("info", tiny.run, "--json").stdout


def test_a_loaded_head_stays_at_its_commit(hub: FakeHub, tiny: Any) -> None:
    put_files(hub, tiny.run)
    run = mm.load_head(f"hf-hub:{REPO}")
    assert str(run.path) == f"hf-hub:{REPO}@{COMMIT}"
    put_files(hub, tiny.run, but=("metrics.json",), commit=OTHER)
    hub.put(REPO, "metrics.json", b"{}", commit=OTHER)
    assert run.metrics == mm.load_head(tiny.run).metrics
    assert run.model_card == mm.load_head(tiny.run).model_card
    assert mm.load_head(f"hf-hub:{REPO}@{COMMIT}").metrics == run.metrics


@pytest.mark.parametrize("revision", ["v1.0", "a-branch", OTHER])
def test_a_revision_is_that_one(
    revision: str, hub: FakeHub, packed: Path, tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hub.put(REPO, "head.zip", b"of main")
    hub.put(REPO, "head.zip", packed.read_bytes(), revision=revision, commit=OTHER)
    assert str(mm.load_head(f"hf-hub:{REPO}@{revision}").path) == f"hf-hub:{REPO}@{OTHER}"
    assert bool(caplog.records) == (revision != OTHER)
    with pytest.raises(HeadError, match="not a packed head"):
        mm.load_head(f"hf-hub:{REPO}")


@pytest.mark.parametrize("form", ["packed", "files"])
@pytest.mark.parametrize("how", ["offline", "no network", "no such host"])
def test_what_is_in_the_cache_needs_no_network(
    how: str,
    form: str,
    hub: FakeHub,
    packed: Path,
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if form == "packed":
        hub.put(REPO, "head.zip", packed.read_bytes())
    else:
        put_files(hub, tiny.run)
    expected = mm.load_head(f"hf-hub:{REPO}").card
    cut_off(how, tmp_path, monkeypatch)
    assert mm.load_head(f"hf-hub:{REPO}").card == expected
    assert mm.load_head(f"hf-hub:{REPO}@{COMMIT}").card == expected


def cut_off(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        address = "http://127.0.0.1:9" if how == "no network" else "http://no-such-host.invalid"
        look_at(address, tmp_path / "hub", monkeypatch)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("offline", "is not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it; unset it"),
        ("no network", "cannot be reached from here"),
        ("no such host", "no-such-host.invalid cannot be reached from here"),
    ],
)
def test_what_is_nowhere_is_said(
    how: str, said: str, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(how, tmp_path, monkeypatch)
    with pytest.raises(HeadError, match=said) as error:
        mm.load_head(f"hf-hub:{REPO}")
    assert "give the head's folder or its file instead" in str(error.value)


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, GATED, r"hf-hub:org/head is gated: ask for access at http\S+/org/head, then log in"),
        (401, {"X-Error-Code": "RepoNotFound"}, "does not exist, or is private and you are not logged in"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "has no revision main"),
        (404, {"X-Error-Code": "EntryNotFound"}, r"has none of the files head\.zip, head\.json"),
        (429, {}, "too many requests"),
        (503, {}, r"the hub has an error \(status 503\)"),
    ],
)
def test_each_refusal_is_one_sentence(
    status: int,
    headers: dict[str, str],
    said: str,
    hub: FakeHub,
    tiny: Any,
    tmp_path: Path,
    mmap: Callable[..., Any],
) -> None:
    hub.answer = (status, headers)
    with pytest.raises(HeadError, match=said):
        mm.load_head(f"hf-hub:{REPO}")
    done = mmap("predict", f"hf-hub:{REPO}", tiny.store, "--out", tmp_path / "p")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_a_revision_that_there_is_not(hub: FakeHub) -> None:
    hub.answer = (404, {"X-Error-Code": "RevisionNotFound"})
    with pytest.raises(HeadError, match="has no revision v9"):
        mm.load_head(f"hf-hub:{REPO}@v9")


@pytest.mark.parametrize(
    "name",
    ["", "org", "org/", "/head", "org/head/more", "org/he ad", "../head", "org/..", "org/head@", "org/head@../../x",
     "org/head@/etc", "org/head@a b", "org/head@\x1b[31m", "org/head@v1@v2", "org/" + "x" * 5000 + "\n"],
)  # fmt: skip
def test_a_name_that_is_none_is_refused_and_nobody_is_asked(name: str, hub: FakeHub) -> None:
    with pytest.raises(HeadError, match="is not the name of a hub repository") as error:
        mm.load_head(f"hf-hub:{name}")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert not hub.asked


@pytest.mark.parametrize("missing", ["head.safetensors", "metrics.json", "README.md"])
def test_files_that_the_repository_lacks(missing: str, hub: FakeHub, tiny: Any) -> None:
    put_files(hub, tiny.run, but=(missing,))
    if missing == "head.safetensors":
        with pytest.raises(
            HeadError, match=rf"hf-hub:org/head@{COMMIT} is not a run .*head.safetensors is missing"
        ):
            mm.load_head(f"hf-hub:{REPO}")
    else:
        assert mm.load_head(f"hf-hub:{REPO}").panel == mm.load_head(tiny.run).panel


def test_a_damaged_head_on_the_hub_is_refused(hub: FakeHub, packed: Path, tiny: Any) -> None:
    hub.put(REPO, "head.zip", packed.read_bytes()[:-1])
    with pytest.raises(HeadError, match="not a packed head"):
        mm.load_head(f"hf-hub:{REPO}")
    hub.files.clear()
    put_files(hub, tiny.run, but=("head.json",), commit=OTHER)
    content = json.loads((tiny.run / "head.json").read_text())
    hub.put(REPO, "head.json", json.dumps({**content, "seed": 1}).encode(), commit=OTHER)
    with pytest.raises(HeadError, match=rf"hf-hub:org/head@{OTHER} is damaged"):
        mm.load_head(f"hf-hub:{REPO}")


def test_one_file_is_made_of_a_head_on_the_hub(hub: FakeHub, packed: Path, tiny: Any, tmp_path: Path) -> None:
    put_files(hub, tiny.run)
    assert mm.load_head(f"hf-hub:{REPO}").pack(tmp_path / "head.zip").read_bytes() == packed.read_bytes()
