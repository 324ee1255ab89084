"""A store in one file: what is in it, the same numbers as from the folder, and what is refused."""

import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zarr
from zarr.storage import ZipStore

from mmap_st.errors import RequestError, StoreError
from mmap_st.extract.store import is_packed_store, is_store, is_zipped_folder, staying
from mmap_st.extract.store.contents import list_contents
from mmap_st.extract.store.nodes import folder_of
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.storage.zipped import StoreZip
from mmap_st.extract.store.upkeep.packing import pack_into
from mmap_st.extract.store.writing.lock import slide_lock
from mmap_st.prototypes.stored import build_all, candidates_in, stored_candidates
from tests.extract.store.stores import MPPS, SETTINGS, aged, made, read, unfinished

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("s") / "f.zarr", tokens=2)


def pack(store: Path, out: Path) -> Path:
    pack_into(FeatureStore(store), out)
    return out


@pytest.fixture(scope="module")
def packed(store: Path) -> Path:
    return pack(store, store.with_name("f.zarr.zip"))


def files_in(path: Path) -> Files:
    """All of a folder or an archive."""
    if path.is_dir():
        return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_all_that_is_complete_is_in_the_file_and_reads_the_same(store: Path, packed: Path) -> None:
    assert files_in(packed) == files_in(store)
    assert read(packed, whole=True) == read(store, whole=True)
    one, other = (FeatureStore(path).slide("A") for path in (store, packed))
    assert candidates_in(one).keys() == candidates_in(other).keys()
    lines = [list(list_contents(FeatureStore(path), verify=True)) for path in (store, packed)]
    assert lines[0] == lines[1]
    assert repr(FeatureStore(packed)).splitlines()[1:] == repr(FeatureStore(store)).splitlines()[1:]


def test_zarr_reads_it_as_it_is(packed: Path) -> None:
    root = zarr.open_group(ZipStore(packed, mode="r"), mode="r")
    assert root["A/enc/0.5000/embedding"][:].shape == (12, 6)
    with zipfile.ZipFile(packed) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_the_same_content_is_the_same_file(store: Path, packed: Path, tmp_path: Path) -> None:
    pack_into(FeatureStore(packed), tmp_path / "of the file.zip")
    time.sleep(0.01)
    for file in store.rglob("*"):
        os.utime(file)
    pack_into(FeatureStore(store), tmp_path / "new/folder.zip")
    again = {path.read_bytes() for path in tmp_path.rglob("*.zip")}
    assert again == {packed.read_bytes()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "of the file.zip"]  # no draft, no lock


def test_what_is_unfinished_or_damaged_is_left_out(tmp_path: Path) -> None:
    path = made(tmp_path / "f.zarr")
    whole = files_in(path)
    unfinished(path)
    (path / "A/enc/0.5000/embedding/c/1/0").write_bytes(b"not what was written")
    (path / "A/mine.txt").write_text("somebody's")
    (path / "A/enc/1.0000/valid/zarr.json.0123456789abcdef0123456789abcdef.partial").write_text("a draft")
    report = pack_into(FeatureStore(path), tmp_path / "f.zip")
    assert report.left_out == {"B": "enc at 2.0000 um/px is unfinished"}
    assert "A/enc/0.5000/embedding is damaged" in report.failed["A"]
    assert report.slides == ["A", "B"]
    found = files_in(tmp_path / "f.zip")
    assert found.keys() == {name for name in whole if not name.startswith("A/enc/0.5000/")}
    assert list(FeatureStore(tmp_path / "f.zip").slide("A").complete("enc")) == [1.0]


def test_stores_of_earlier_versions_are_packed_too(store: Path, tmp_path: Path) -> None:
    path = aged(made(tmp_path / "f.zarr"))
    pack_into(FeatureStore(path), tmp_path / "f.zip")
    assert read(tmp_path / "f.zip", whole=True) == read(path, whole=True)


def test_a_store_without_anything_complete_makes_no_file(tmp_path: Path) -> None:
    FeatureStore.create(tmp_path / "f.zarr")
    with pytest.raises(StoreError, match="has no slide that is complete; nothing is packed"):
        pack_into(FeatureStore(tmp_path / "f.zarr"), tmp_path / "f.zip")
    assert not list(tmp_path.glob("*.zip*"))


def test_nothing_else_is_replaced(store: Path, packed: Path, tmp_path: Path) -> None:
    opened = FeatureStore(store)
    mine = tmp_path / "mine.zip"
    mine.write_text("mine")
    with pytest.raises(StoreError, match="exists; name another file, or give --overwrite"):
        pack_into(opened, packed)
    with pytest.raises(StoreError, match="is not a packed store, and would be replaced"):
        pack_into(opened, mine, overwrite=True)
    with pytest.raises(StoreError, match="is inside the store"):
        pack_into(opened, store / "f.zip")
    assert mine.read_text() == "mine"


def test_a_slide_that_is_being_written_is_refused(store: Path, tmp_path: Path) -> None:
    with (
        slide_lock(store, "B"),
        pytest.raises(StoreError, match=r"slide B: another process .* is writing it"),
    ):
        pack_into(FeatureStore(store), tmp_path / "f.zip")
    assert not list(tmp_path.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_what_was_there(store: Path, tmp_path: Path) -> None:
    out = pack(store, tmp_path / "f.zip")
    before = out.read_bytes()
    with (
        largest_file(20_000),
        pytest.raises(RequestError, match=r"FILE .*f.zip cannot be written \(File too"),
    ):
        pack_into(FeatureStore(store), out, overwrite=True)
    assert out.read_bytes() == before
    assert os.listdir(tmp_path) == ["f.zip"]


KILLED = """
import os, sys, zipfile
from pathlib import Path
from mmap_st.extract.store.upkeep.packing import pack_into
from mmap_st.extract.store.reader import FeatureStore
write, count = zipfile.ZipFile.writestr, [0]
def writestr(*args):
    count[0] += 1
    if count[0] == 40:
        os.kill(os.getpid(), 9)
    return write(*args)
zipfile.ZipFile.writestr = writestr
pack_into(FeatureStore(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_process_leaves_no_file_and_the_next_one_makes_it(
    store: Path, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "f.zip"
    done = subprocess.run([sys.executable, "-c", KILLED, store, out], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    pack_into(FeatureStore(store), out)
    assert out.read_bytes() == packed.read_bytes()
    assert os.listdir(tmp_path) == ["f.zip"]


def test_nothing_writes_into_it(packed: Path) -> None:
    before = packed.read_bytes()
    opened = FeatureStore(packed)
    for write in (
        lambda: FeatureStore(packed, writable=True),
        lambda: FeatureStore.create(packed),
        lambda: opened.require_group("A"),
        lambda: list(list_contents(opened, verify=True, seal=True)),
        lambda: build_all(opened, "enc", MPPS, SETTINGS),
        lambda: opened.root.create_group("new"),
    ):
        with pytest.raises(Exception, match=r"cannot be written to; unpack it with `mmap merge|read-only"):
            write()
    assert packed.read_bytes() == before


def test_prototypes_that_it_lacks_are_built_without_being_stored(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = [
        stored_candidates(FeatureStore(store), FeatureStore(store)[s], "enc", (0.5,), SETTINGS)[0]
        for s in "AB"
    ]
    out = tmp_path / "f.zip"
    pack_into(FeatureStore(made(tmp_path / "f.zarr", tokens=2)), out)
    opened = FeatureStore(out)
    for attempt in range(2):
        for name, expected in zip("AB", wanted, strict=True):
            found, built = stored_candidates(opened, opened[name], "enc", (0.5,), SETTINGS)
            assert built == (attempt == 0)
            assert found.centre.tobytes() == expected.centre.tobytes()
            assert found.label.tolist() == expected.label.tolist()
    assert caplog.text.count("packed without the prototypes") == 1


def test_threads_and_other_processes_read_it_at_a_time(store: Path, packed: Path) -> None:
    slide = FeatureStore(packed)["A"]
    expected = FeatureStore(store)["A"].embedding("enc", mpp=0.5).tobytes()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: slide.embedding("enc", mpp=0.5).tobytes(), range(40)))
    assert found == {expected}
    place = pickle.loads(pickle.dumps(folder_of(slide.group)))
    assert place == folder_of(slide.group)
    assert place.bytes_of("A/zarr.json") == (store / "A/zarr.json").read_bytes()


def test_one_that_is_replaced_meanwhile_is_not_read_on(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.zip"
    path.write_bytes(packed.read_bytes())
    slide = FeatureStore(path)["A"]
    os.utime(path, ns=(1, 1))
    with pytest.raises(StoreError, match="was replaced while this ran"):
        slide.embedding("enc", mpp=0.5)
    opened = FeatureStore(path)
    with pytest.raises(StoreError, match="was removed or moved while this ran"):
        read_a_removed_one(opened)


def read_a_removed_one(opened: FeatureStore) -> None:
    with staying(opened.path, ["A"], "enc", MPPS):
        opened.path.unlink()
        opened["A"].embedding("enc", mpp=0.5)


# What is refused.


def zipped(path: Path, files: Files, edit: Callable[[zipfile.ZipInfo], object] = lambda info: None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            edit(info)
            archive.writestr(info, data, info.compress_type)
    return path


def one_as(name: str, **attributes: Any) -> Callable[[zipfile.ZipInfo], None]:
    def edit(info: zipfile.ZipInfo) -> None:
        if info.filename == name:
            for key, value in attributes.items():
                setattr(info, key, value)

    return edit


CHUNK = "A/enc/0.5000/embedding/c/0/0"
LINK = (stat.S_IFLNK | 0o777) << 16


@pytest.mark.parametrize(
    ("added", "edit", "said"),
    [
        ({"../x": b""}, one_as(""), "'../x', which leads out of it"),
        ({"/etc/x": b""}, one_as(""), "'/etc/x', which leads out of it"),
        ({"A/./x": b""}, one_as(""), "leads out of it"),
        ({"A//x": b""}, one_as(""), "leads out of it"),
        ({"A\\..\\x": b""}, one_as(""), "leads out of it"),
        ({}, one_as(CHUNK, compress_type=zipfile.ZIP_DEFLATED), "which is compressed"),
        ({"bomb": bytes(10_000_000)}, one_as("bomb", compress_type=zipfile.ZIP_DEFLATED), "is compressed"),
        ({"A/link": b"/etc/passwd"}, one_as("A/link", external_attr=LINK), "which is a link or a device"),
        ({"A": b""}, one_as(""), "'A' both as a file and as a folder"),
        ({f"{CHUNK}/x": b""}, one_as(""), "both as a file and as a folder"),
    ],
)
def test_an_archive_that_holds_what_no_store_has_is_one_sentence(
    added: Files, edit: Any, said: str, packed: Path, tmp_path: Path
) -> None:
    path = zipped(tmp_path / "f.zip", files_in(packed) | added, edit)
    with pytest.raises(StoreError) as refused:
        FeatureStore(path)
    assert said in str(refused.value)
    assert str(refused.value).endswith("make it again with `mmap pack STORE FILE`.")
    assert is_packed_store(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(packed: Path) -> None:
    path = packed.with_name("twice.zip")
    path.write_bytes(packed.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("A/zarr.json", b"{}")
    with pytest.raises(StoreError, match=r"holds 'A/zarr.json' twice"):
        FeatureStore(path)


def test_files_that_share_bytes_are_refused(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files_in(packed).items():
            archive.writestr(name, data)
        archive.infolist()[-1].header_offset = archive.infolist()[0].header_offset
    with pytest.raises(StoreError, match="within the bytes of"):
        FeatureStore(path)


def test_an_archive_of_something_else_is_not_taken_for_one(packed: Path, tmp_path: Path) -> None:
    inner = zipped(
        tmp_path / "inner.zip", {f"f.zarr/{name}": data for name, data in files_in(packed).items()}
    )
    assert not is_store(inner)
    assert is_zipped_folder(inner)
    assert not is_zipped_folder(packed)
    with pytest.raises(
        StoreError, match=r"not a packed store; the folder f\.zarr in it may be one; pack one with"
    ):
        FeatureStore(inner)
    with pytest.raises(StoreError, match="is a zip archive, and not a packed store; pack one with"):
        FeatureStore(zipped(tmp_path / "x.zip", {"x": b""}))


def test_folders_that_an_archive_lists_do_not_matter(packed: Path, tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "f.zip", {"A/": b"", "A/enc/": b""} | dict(sorted(files_in(packed).items())[::-1])
    )
    assert is_packed_store(path)
    assert read(path) == read(packed)


def test_no_part_of_an_archive_passes_for_it(packed: Path, tmp_path: Path) -> None:
    """Nor does one that lost bytes at its beginning, or got more at its end."""
    data, path = packed.read_bytes(), tmp_path / "f.zip"
    for size in (31, 60, 1000, len(data) // 2, len(data) - 22, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(StoreError, match=r"f.zip is damaged, or not a zip archive|exists and is not"):
            FeatureStore(path)
    path.write_bytes(data + b"more")
    with pytest.raises(StoreError, match="does not end as such a file does"):
        FeatureStore(path)


def test_every_byte_that_is_changed_is_noticed_or_does_not_matter(packed: Path, tmp_path: Path) -> None:
    data, path, expected = packed.read_bytes(), tmp_path / "f.zip", read(packed, whole=True)
    noticed = 0
    for place in range(0, len(data), len(data) // 60):
        changed = bytearray(data)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        try:
            found = read(path, whole=True)
        except StoreError:
            noticed += 1
            continue
        for name, parts in found.items():
            assert parts == expected[name] or "damaged" in str(parts) or "prototypes" in str(parts), name
        noticed += found != expected
    assert noticed > 30


def test_a_chunk_that_is_damaged_says_what_to_do(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        entry = archive.getinfo(CHUNK)
    data = bytearray(packed.read_bytes())
    data[entry.header_offset + 30 + len(CHUNK) + 2] ^= 1
    (tmp_path / "f.zip").write_bytes(data)
    with pytest.raises(StoreError, match=r"its bytes are not those that were packed\); get the file again"):
        FeatureStore(tmp_path / "f.zip")["A"].embedding("enc", mpp=0.5)


def test_an_archive_that_lists_too_much_is_not_read(packed: Path, tmp_path: Path) -> None:
    data = bytearray(packed.read_bytes())
    data[-10:-6] = (300 << 20).to_bytes(4, "little")
    (tmp_path / "f.zip").write_bytes(data)
    with pytest.raises(StoreError, match="it lists more than 1000000 files"):
        FeatureStore(tmp_path / "f.zip")


def test_archives_beyond_the_limits_of_the_first_format_are_read(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zip64: for more than 65,535 files, or 4 GiB."""
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    path = zipped(tmp_path / "f.zip", files_in(packed))
    assert b"PK\x06\x07" in path.read_bytes()[-42:]
    assert read(path) == read(packed)
    assert isinstance(folder_of(FeatureStore(path).root), StoreZip)
