"""One file is one head: loaded it predicts as the folder does, and what is not as it was packed is refused."""

import hashlib
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmap_st as mm
from mmap_st.errors import HeadError, RequestError
from mmap_st.head.runs.head_card import sha256_of_card
from mmap_st.head.sharing import is_packed, pack_run, run_at
from mmap_st.workflows import pack_head

Entries = dict[str, bytes]
BEFORE = Path(__file__).parents[2] / "data_of_before" / "store_and_runs.tar.xz"
FILES = [
    "README.md",
    "card.json",
    "genes.csv",
    "head.json",
    "head.safetensors",
    "manifest.json",
    "metrics.json",
]


@pytest.fixture(scope="module")
def packed(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "head.zip"
    pack_run(tiny.run, out)
    return out


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def entries_of(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path: Path, entries: Entries, how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def with_manifest(entries: Entries, **changes: Any) -> Entries:
    """The same files with a manifest that is true of them, but for `changes`."""
    files = {name: data for name, data in entries.items() if name != "manifest.json"}
    about = {n: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for n, data in files.items()}
    manifest = {
        "format": "mmap-head",
        "format_version": 1,
        "package_version": "0.1.0",
        "files": about,
        **changes,
    }
    return {**files, "manifest.json": json.dumps(manifest).encode()}


# What is packed.


def test_the_same_run_gives_the_same_bytes(tiny: Any, packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny.run, tmp_path / "elsewhere"))
    for file in copy.rglob("*"):
        os.utime(file, (1e9, 1e9))
        file.chmod(0o700)
    pack_run(copy, tmp_path / "other.zip")
    assert (tmp_path / "other.zip").read_bytes() == packed.read_bytes()
    pack_run(packed, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def test_it_holds_the_head_and_its_card_and_no_predictions(tiny: Any, packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        infos = archive.infolist()
        assert archive.testzip() is None
    assert [info.filename for info in infos] == FILES
    assert {info.external_attr >> 16 for info in infos} == {stat.S_IFREG | 0o644}
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    found = entries_of(packed)
    for name in set(FILES) - {"manifest.json"}:
        assert found[name] == (tiny.run / name).read_bytes()
    manifest = json.loads(found["manifest.json"])
    assert list(manifest["files"]) == [name for name in FILES if name != "manifest.json"]
    assert is_packed(packed)


def test_a_users_own_readme_goes_along(tiny: Any, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny.run, tmp_path / "run"))
    (copy / "README.md").write_text("# mine")
    (copy / "notes.txt").write_text("not for others")
    pack_run(copy, tmp_path / "head.zip")
    assert entries_of(tmp_path / "head.zip")["README.md"] == b"# mine"
    assert "notes.txt" not in entries_of(tmp_path / "head.zip")


@pytest.mark.parametrize("head", ["ridge", "mmap"])
def test_a_run_of_before_is_packed_with_a_card(head: str, tmp_path: Path) -> None:
    with tarfile.open(BEFORE) as archive:
        archive.extractall(tmp_path, filter="data")
    packed = tmp_path / "head.zip"
    pack_run(tmp_path / head, packed)
    pack_run(tmp_path / head, tmp_path / "again.zip")
    assert packed.read_bytes() == (tmp_path / "again.zip").read_bytes()
    for place in (tmp_path / head, packed):
        mm.predict(place, tmp_path / "features.zarr", tmp_path / place.stem, slides=["D1"], progress=False)
    same(tmp_path / head / "D1.h5ad", tmp_path / "head" / "D1.h5ad")
    assert mm.load_head(packed).model_card.scores["ridge"].pcc_slide == pytest.approx(0.4461, abs=1e-4)


def same(first: Path, second: Path) -> None:
    from mmap_st.head.runs import read_prediction

    one, other = (read_prediction(path) for path in (first, second))
    np.testing.assert_array_equal(one.X, other.X)
    for layer in one.layers:
        np.testing.assert_array_equal(one.layers[layer], other.layers[layer])
    assert one.uns["mmap"]["head_sha256"] == other.uns["mmap"]["head_sha256"]


# It is loaded as the folder is.


def test_it_predicts_to_the_bit_in_another_process_and_place(
    tiny: Any, packed: Path, tmp_path: Path, temporary: Path
) -> None:
    moved = tmp_path / "some where"
    moved.mkdir()
    shutil.copy(packed, moved / "h")  # whatever its name
    words = ["predict", "h", str(tiny.store), "--out", "p"]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "mmap_st", *words], cwd=moved, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = mm.predict(tiny.run, tiny.store, tmp_path / "q", progress=False)
    for slide, path in report.written.items():
        same(path, moved / "p" / f"{slide}.h5ad")
    assert list(temporary.iterdir()) == []
    assert sorted(p.name for p in moved.iterdir()) == ["h", "p"]


def test_it_is_a_head_from_python(tiny: Any, packed: Path, temporary: Path, tmp_path: Path) -> None:
    run, loaded = mm.load_head(tiny.run), mm.load_head(packed)
    assert loaded.card == run.card
    assert loaded.metrics == run.metrics
    assert loaded.model_card == run.model_card
    assert repr(loaded).splitlines()[1:] == repr(run).splitlines()[1:]
    first, second = (head.predict(tiny.store, "B1", progress=False) for head in (run, loaded))
    np.testing.assert_array_equal(first.X, second.X)
    assert run.pack(tmp_path / "a.zip").read_bytes() == loaded.pack(tmp_path / "b.zip").read_bytes()
    assert list(temporary.iterdir()) == []


def test_info_is_that_of_the_folder(tiny: Any, packed: Path, mmap: Callable[..., Any]) -> None:
    for flags in ((), ("--json",)):
        assert mmap("info", packed, *flags).stdout == mmap("info", tiny.run, *flags).stdout


# What may be written where.


def test_a_file_is_replaced_only_if_that_is_requested(
    tiny: Any, tmp_path: Path, mmap: Callable[..., Any]
) -> None:
    out = tmp_path / "new" / "head.zip"
    done = mmap("pack", tiny.run, out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    again = mmap("pack", tiny.run, out)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert mmap("pack", tiny.run, out, "--overwrite").returncode == 0
    assert [p.name for p in out.parent.iterdir()] == ["head.zip"]


@pytest.mark.parametrize("content", [b"", b"thesis", "zip"])
def test_what_is_no_packed_head_is_never_replaced(content: bytes | str, tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "mine.zip"
    if isinstance(content, bytes):
        out.write_bytes(content)
    else:
        written(out, {"thesis.txt": b"mine"})
    before = out.read_bytes()
    with pytest.raises(RequestError, match="is not a packed head, and would be replaced"):
        pack_run(tiny.run, out, overwrite=True)
    assert out.read_bytes() == before


def damage(run: Path, how: str) -> None:
    match how:
        case "metrics missing":
            (run / "metrics.json").unlink()
        case "metrics":
            (run / "metrics.json").write_text("{}")
        case "head.json":
            (run / "head.json").write_text((run / "head.json").read_text().replace("ridge", "mean"))
        case "weights":
            with (run / "head.safetensors").open("r+b") as file:
                file.seek(-1, io.SEEK_END)
                file.write(b"\x99")
        case "weights cut":
            os.truncate(run / "head.safetensors", 100)
        case "a link":
            (run / "README.md").unlink()
            (run / "README.md").symlink_to("/etc/passwd")
        case "a large README":
            (run / "README.md").write_bytes(bytes(5 << 20))
        case "no run":
            (run / "head.json").unlink()


@pytest.mark.parametrize(
    "how",
    [
        "metrics missing",
        "metrics",
        "head.json",
        "weights",
        "weights cut",
        "a link",
        "a large README",
        "no run",
    ],
)
def test_a_damaged_run_is_not_packed(how: str, tiny: Any, tmp_path: Path, mmap: Callable[..., Any]) -> None:
    run = Path(shutil.copytree(tiny.run, tmp_path / "run"))
    damage(run, how)
    done = mmap("pack", run, tmp_path / "head.zip")
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1
    assert str(run) in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_store_is_not_packed_as_a_head(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a feature store; name the folder of a trained head"):
        pack_head(tiny.store, tmp_path / "s")


# What is refused.


def edited(
    entries: Entries, name: str, edit: Callable[[dict[str, Any]], object], *, sha256: bool = True
) -> Entries:
    """A JSON file changed, and every hash that is kept of it."""
    content = json.loads(entries[name])
    edit(content)
    if name == "head.json" and sha256:
        content["sha256"] = sha256_of_card(content)
    return with_manifest({**entries, name: json.dumps(content).encode()})


def with_weights(entries: Entries, weights: bytes) -> Entries:
    changed = {**entries, "head.safetensors": weights}
    sha256 = hashlib.sha256(weights).hexdigest()
    return edited(changed, "head.json", lambda head: head.update(weights_sha256=sha256))


def special(name: str, kind: int, content: bytes) -> Callable[[Entries, Path], None]:
    """A file of another kind among those of a packed head."""

    def write(entries: Entries, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for other, data in with_manifest({**entries, name: content}).items():
                info = zipfile.ZipInfo(other)
                info.create_system = 3
                info.external_attr = ((kind if other == name else stat.S_IFREG) | 0o644) << 16
                archive.writestr(info, data)

    return write


def patched(signature: bytes, offset: int, value: bytes) -> Callable[[Entries, Path], None]:
    """Bytes changed in the first record of a kind."""

    def write(entries: Entries, path: Path) -> None:
        written(path, entries)
        content = bytearray(path.read_bytes())
        start = content.index(signature) + offset
        content[start : start + len(value)] = value
        path.write_bytes(content)

    return write


def plain(change: Callable[[Entries], Entries]) -> Callable[[Entries, Path], None]:
    return lambda entries, path: written(path, change(entries))


def raw(change: Callable[[bytes], bytes]) -> Callable[[Entries, Path], None]:
    def write(entries: Entries, path: Path) -> None:
        written(path, entries)
        path.write_bytes(change(path.read_bytes()))

    return write


def twice(entries: Entries, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            if name != "genes.csv":
                archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("head.json", b"{}")


def tarred(entries: Entries, path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def without(name: str) -> Callable[[Entries, Path], None]:
    return plain(lambda e: with_manifest({k: v for k, v in e.items() if k != name}))


def also(name: str) -> Callable[[Entries, Path], None]:
    """A file in the place of the one that may be missing: as many as there should be."""
    return plain(lambda e: with_manifest({**{k: v for k, v in e.items() if k != "genes.csv"}, name: b"x"}))


def nested(entries: Entries) -> Entries:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return {"head.zip": inner.getvalue()}


def lying(entries: Entries) -> bytes:
    """Weights whose header says that a tensor is larger than the file."""
    weights = entries["head.safetensors"]
    (size,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    header[name] = {"dtype": "F32", "shape": [1 << 40, 4], "data_offsets": [0, 1 << 44]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights[8 + size :]


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
DEEP = b"[" * 200_000
FAULTS: dict[str, Callable[[Entries, Path], None]] = {
    "empty": lambda entries, path: path.write_bytes(b""),
    "text": lambda entries, path: path.write_text("this is no head"),
    "a picture": lambda entries, path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "tar": tarred,
    "no files": plain(lambda e: {}),
    "cut in half": raw(lambda data: data[: len(data) // 2]),
    "cut by a byte": raw(lambda data: data[:-1]),
    "its end alone": raw(lambda data: data[-22:]),
    "something before": raw(lambda data: b"#!/bin/sh\n" + data),
    "something after": raw(lambda data: data + b"\n"),
    "a comment": raw(lambda data: data[:-2] + b"\x02\x00hi"),
    "a changed byte": raw(lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]),
    "another README": plain(lambda e: {**e, "README.md": b"x" * len(e["README.md"])}),
    "another head.json": plain(lambda e: {**e, "head.json": e["head.json"].replace(b"ridge", b"mmap ")}),
    "longer weights": plain(lambda e: {**e, "head.safetensors": e["head.safetensors"] + b"\0"}),
    "no head.json": without("head.json"),
    "no weights": without("head.safetensors"),
    "no metrics": without("metrics.json"),
    "no card": without("card.json"),
    "no README": without("README.md"),
    "no manifest": plain(lambda e: {k: v for k, v in e.items() if k != "manifest.json"}),
    "a file that the manifest lacks": plain(lambda e: {**with_manifest({**e, "genes.csv": b""}), "genes.csv": b"x"}),
    "a file more": also("head.py"),
    "predictions": also("predictions/A1.h5ad"),
    "a path above": also("../evil"),
    "a path far above": also("../../../../../../../../../../tmp/evil"),
    "a path from the root": also("/tmp/evil"),
    "a path of Windows": also("..\\evil"),
    "a drive": also("C:\\evil"),
    "a home": also("~/evil"),
    "a folder": also("folder/"),
    "a name that ends twice": also("head.json\x00.py"),
    "a name in capitals": also("HEAD.JSON"),
    "a name with a dot": also("./head.json"),
    "an empty name": patched(CENTRAL, 28, b"\x00\x00"),
    "a name of commands": also("\x1b[31m\n.json"),
    "a link": special("README.md", stat.S_IFLNK, b"/etc/passwd"),
    "a link to above": special("genes.csv", stat.S_IFLNK, b"../../../../etc"),
    "a device": special("README.md", stat.S_IFCHR, b""),
    "a folder of a known name": special("README.md", stat.S_IFDIR, b""),
    "a name twice": twice,
    "encrypted": patched(CENTRAL, 8, b"\x01\x00"),
    "compressed": lambda entries, path: written(path, entries, zipfile.ZIP_DEFLATED),
    "compressed by bzip2": lambda entries, path: written(path, entries, zipfile.ZIP_BZIP2),
    "a bomb": lambda e, path: written(path, with_manifest({**e, "README.md": bytes(64 << 20)}), zipfile.ZIP_DEFLATED),
    "a compression that nobody knows": patched(CENTRAL, 10, b"\x63\x00"),
    "a large README": plain(lambda e: with_manifest({**e, "README.md": bytes(5 << 20)})),
    "a size that is not true": patched(CENTRAL, 20, struct.pack("<II", 1 << 30, 1 << 30)),
    "an offset that is not true": patched(CENTRAL, 42, struct.pack("<I", 1 << 30)),
    "other names inside": patched(LOCAL, 30, b"x"),
    "hundreds of files": plain(lambda e: {**e, **{f"{n}.txt": b"" for n in range(500)}}),
    "a head in a head": plain(nested),
    "the folder": plain(lambda e: {f"run/{name}": data for name, data in e.items()}),
    "another format": plain(lambda e: with_manifest(e, format="mmap-store")),
    "no format": plain(lambda e: {**e, "manifest.json": b"{}"}),
    "a later version": plain(lambda e: with_manifest(e, format_version=2)),
    "an endless version": plain(lambda e: with_manifest(e, format_version="9" * 10_000)),
    "a manifest of nothing": plain(lambda e: with_manifest(e, files={})),
    "a manifest of lists": plain(lambda e: with_manifest(e, files=[])),
    "a manifest of words": plain(lambda e: with_manifest(e, files=dict.fromkeys(e, "x"))),
    "a manifest of no object": plain(lambda e: {**e, "manifest.json": b"[1]"}),
    "a deep manifest": plain(lambda e: {**e, "manifest.json": DEEP}),
    "a huge manifest": plain(lambda e: {**e, "manifest.json": b'{"x": "' + b"x" * (2 << 20) + b'"}'}),
    "a manifest that is no text": plain(lambda e: {**e, "manifest.json": b"\xff\xfe"}),
    "a deep head.json": plain(lambda e: with_manifest({**e, "head.json": DEEP})),
    "a deep metrics.json": plain(lambda e: with_manifest({**e, "metrics.json": DEEP})),
    "a deep setting": plain(lambda e: with_manifest({**e, "head.json": b'{"settings": ' + DEEP})),
    "a setting of many levels": plain(
        lambda e: edited(e, "head.json", lambda head: head["chosen"].update(x=json.loads("[" * 300 + "]" * 300)))
    ),
    "an endless number": plain(lambda e: with_manifest({**e, "head.json": b'{"seed": ' + b"9" * 10_000 + b"}"})),
    "a shape that is no number": plain(
        lambda e: edited(e, "head.json", lambda head: head["shape"].update(genes=float("nan")))
    ),
    "a shape of billions": plain(lambda e: edited(e, "head.json", lambda head: head["shape"].update(width=10**12))),
    "a magnification that is no number": plain(
        lambda e: edited(e, "head.json", lambda head: head.update(magnifications=[float("nan"), 1.0]))
    ),
    "code of a file": plain(lambda e: edited(e, "head.json", lambda head: head.update(head="/tmp/evil.py:Head"))),
    "code of a module": plain(lambda e: edited(e, "head.json", lambda head: head.update(head="os:system"))),
    "a head that there is not": plain(lambda e: edited(e, "head.json", lambda head: head.update(head="__import__"))),
    "weights of nothing": plain(lambda e: with_weights(e, b"")),
    "a pickle for weights": plain(lambda e: with_weights(e, b"\x80\x04cos\nsystem\n(S'touch /tmp/evil'\ntR.")),
    "a header that is endless": plain(lambda e: with_weights(e, struct.pack("<Q", 1 << 60) + b"{}")),
    "a header that lies": plain(lambda e: with_weights(e, lying(e))),
    "weights of another head": plain(lambda e: with_manifest({**e, "head.safetensors": lying(e)})),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_as_it_was_packed_is_refused(
    fault: str, packed: Path, tmp_path: Path, temporary: Path
) -> None:
    path = tmp_path / "bad.zip"
    FAULTS[fault](entries_of(packed), path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(RequestError) as caught:
        str(mm.load_head(path))  # metrics are read when they are wanted
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    assert "\x1b" not in said
    assert str(temporary) not in said
    assert len(said) < 600
    assert set(tmp_path.rglob("*")) == before
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("fault", ["text", "a path above", "a name of commands", "a bomb", "a later version"])
@pytest.mark.parametrize("command", ["predict", "info", "pack"])
def test_every_command_refuses_it_in_one_sentence(
    command: str, fault: str, packed: Path, tiny: Any, tmp_path: Path, mmap: Callable[..., Any]
) -> None:
    path = tmp_path / "bad.zip"
    FAULTS[fault](entries_of(packed), path)
    more = {"predict": (tiny.store, "--out", tmp_path / "p"), "pack": (tmp_path / "new.zip",)}.get(
        command, ()
    )
    done = mmap(command, path, *more)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.zip"]


def test_no_changed_byte_is_a_traceback_or_another_head(packed: Path, tmp_path: Path) -> None:
    """Bytes of the archive's own records, one at a time: the head is the same, or refused."""
    content, path = packed.read_bytes(), tmp_path / "bad.zip"
    records = content.index(CENTRAL)
    rng = np.random.default_rng(0)
    expected = entries_of(packed)
    refusals = []
    for place in (*range(40), *rng.choice(np.arange(records, len(content)), 150, replace=False)):
        changed = bytearray(content)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            with run_at(path) as folder:
                assert {file.name: file.read_bytes() for file in folder.iterdir()} == expected
        except HeadError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not any("\n" in text for text in refusals)


def test_a_missing_file_and_a_pipe_are_said(tmp_path: Path, tiny: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "no.zip", "does not exist"), (tmp_path / "pipe", "is a pipe")):
        with pytest.raises(RequestError, match=said):
            mm.load_head(path)


def test_a_head_of_a_users_own_code_needs_it_again(tiny: Any, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "from dataclasses import replace\nfrom mmap_st.heads import HeadMethod\n"
        "from mmap_st.head.linear import MEAN\nMine = replace(MEAN, name='mine')\n"
    )
    mm.fit_head(
        f"her2st:{tiny.her2st}", tiny.store, encoder="efficientnet-lite0", head=f"{code}:Mine", genes="mean:4",
        test="patient=B", out=tmp_path / "run", progress=False,
    )  # fmt: skip
    packed = mm.load_head(tmp_path / "run", head_code=f"{code}:Mine").pack(tmp_path / "head.zip")
    assert mm.load_head(packed, head_code=f"{code}:Mine").head == "mine"
    loads = f"import mmap_st as mm; mm.load_head({str(packed)!r})"
    done = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, cwd=tmp_path)
    assert "code that a run names is not executed" in done.stderr
    assert f"{packed}: it was trained with" in done.stderr


def test_a_full_temporary_folder_is_said(
    packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(RequestError, match=r"the temporary folder cannot be written .*TMPDIR"):
        mm.load_head(packed)
