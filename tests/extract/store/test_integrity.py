"""What a store holds is what was written, or it is said that it is not; an earlier store is read as ever."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from mmap_st.errors import DamagedSlideError, StoreError
from mmap_st.extract.store.contents import list_contents
from mmap_st.extract.store.integrity import DIGESTS
from mmap_st.extract.store.reader import FeatureStore
from tests.extract.store.stores import aged, made, read


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("s") / "f.zarr")


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "f.zarr"))


def flips(path: Path, count: int) -> Iterator[tuple[Path, bytes, bytes]]:
    """Files of the slides with one bit turned, half of them descriptions."""
    rng = random.Random(0)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.parent != path)
    kinds = [[file for file in files if (file.name == "zarr.json") == json_] for json_ in (True, False)]
    for number in range(count):
        file = rng.choice(kinds[number % 2])
        before = file.read_bytes()
        after, bit = bytearray(before), rng.randrange(8 * len(before))
        after[bit // 8] ^= 1 << bit % 8
        yield file, before, bytes(after)


def test_no_turned_bit_changes_a_number_in_silence(copy: Path) -> None:
    good, damaged = read(copy), 0
    for file, before, after in flips(copy, 120):
        slide = file.relative_to(copy).parts[0]
        file.write_bytes(after)
        found = read(copy)
        assert set(found) == set(good), file
        for name in good:
            assert found[name] == good[name] or (isinstance(found[name], str) and name == slide), file
        damaged += found != good
        file.write_bytes(before)
    assert damaged > 50


def arrays_of(path: Path, slide: str) -> list[Path]:
    return sorted(file.parent for file in (path / slide).rglob("zarr.json") if (file.parent / "c").is_dir())


def chunks_of(array: Path) -> list[Path]:
    return sorted(file for file in (array / "c").rglob("*") if file.is_file())


def is_of_prototypes(array: Path) -> bool:
    return array.parent.parent.name == "prototypes"


def test_no_chunk_can_be_missing(copy: Path) -> None:
    good = read(copy)
    assert len(arrays_of(copy, "A")) == 2 + 2 * 4 + 4
    for array in arrays_of(copy, "A"):
        for chunk in chunks_of(array):
            before = chunk.read_bytes()
            chunk.unlink()
            found = read(copy, whole=True)
            # Those are made again.
            assert found["A"] == good["A"] if is_of_prototypes(array) else "is missing" in str(found["A"])
            assert found["B"] == good["B"]
            chunk.write_bytes(before)


def test_no_chunk_can_be_another_ones(copy: Path) -> None:
    """Each of them is whole, with a check sum that is right."""
    good = read(copy)
    for array in arrays_of(copy, "A"):
        for chunk in chunks_of(array):
            other = copy / "B" / chunk.relative_to(copy / "A")
            if is_of_prototypes(array) or other.read_bytes() == chunk.read_bytes():
                continue
            before = chunk.read_bytes()
            chunk.write_bytes(other.read_bytes())
            found = read(copy, whole=True)
            assert isinstance(found["A"], str), chunk
            assert "is damaged" in found["A"]
            assert found["B"] == good["B"]
            chunk.write_bytes(before)


def test_no_array_can_be_another_slides(copy: Path) -> None:
    embedding = Path("enc") / "0.5000" / "embedding"
    shutil.rmtree(copy / "A" / embedding)
    shutil.copytree(copy / "B" / embedding, copy / "A" / embedding)
    assert "is damaged" in str(read(copy)["A"])


@pytest.mark.parametrize("name", ["embedding", "tokens"])
@pytest.mark.parametrize("how", ["missing chunk", "nan", "infinite"])
def test_rows_without_numbers_are_not_valid_in_any_store(tmp_path: Path, name: str, how: str) -> None:
    path = aged(made(tmp_path / "f.zarr", tokens=2))
    array = zarr.open_group(path, mode="r+")[f"A/enc/0.5000/{name}"]
    if how == "missing chunk":
        next(iter(chunks_of(path / "A" / "enc" / "0.5000" / name))).unlink()
    else:
        array[3] = np.nan if how == "nan" else np.inf
    magnification = FeatureStore.open(path)["A"].complete("enc")[0.5]
    with pytest.raises(DamagedSlideError, match="marked as valid hold no numbers"):
        magnification.embedding() if name == "embedding" else magnification.token_rows(slice(0, 5))
    with pytest.raises(DamagedSlideError, match="marked as valid hold no numbers"):
        magnification.verify()


def test_rows_that_lost_their_mark_are_found(tmp_path: Path) -> None:
    path = aged(made(tmp_path / "f.zarr"))
    zarr.open_group(path, mode="r+")["A/enc/0.5000/valid"][3] = False
    with pytest.raises(DamagedSlideError, match="not valid hold numbers"):
        FeatureStore.open(path)["A"].verify("enc")


def test_a_store_of_before_is_read_as_it_was(store: Path, tmp_path: Path) -> None:
    old = aged(Path(shutil.copytree(store, tmp_path / "f.zarr")))
    assert read(old) == read(store)
    assert {line.state for line in list_contents(FeatureStore.open(old))} == {"complete"}
    assert [line.invalid for line in list_contents(FeatureStore.open(old))] == [1, 1, 1, 1]


def test_verify_and_seal(store: Path, tmp_path: Path, mmap) -> None:
    old = aged(Path(shutil.copytree(store, tmp_path / "f.zarr")))
    shown = mmap("info", old, "--verify")
    assert shown.returncode == 0
    assert "no check sums" in " ".join(shown.stdout.split())
    assert mmap("info", old, "--seal").returncode == 2
    assert mmap("info", old, "--verify", "--seal").returncode == 0
    shown = mmap("info", old, "--verify")
    assert shown.returncode == 0
    assert shown.stdout.count("verified") == 4
    good = read(old)
    for array in arrays_of(old, "B"):
        chunk = chunks_of(array)[0]
        before = chunk.read_bytes()
        chunk.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        shown = mmap("info", old, "--verify")
        assert shown.returncode == 1, array
        assert "is damaged" in " ".join(shown.stdout.split())
        assert "verified" in shown.stdout  # slide A
        chunk.write_bytes(before)
    assert read(old) == good


@pytest.mark.parametrize(
    ("file", "attribute", "value"),
    [
        ("A", "name", 3), ("A", "name", "B"), ("A", "patient", 7), ("A", "patient", "P1"), ("A", "image", []),
        ("A", "size_px", [1]), ("A", "size_px", [-1, 2]), ("A", "size_px", "big"), ("A", "source_mpp", "x"),
        ("A", "source_mpp", -1), ("A", "source_mpp", True), ("A/spots", "complete", False),
        ("A/enc", "name", None), ("A/enc/0.5000", "recipe", 3), ("A/enc/0.5000", "recipe", {"mpp": 0.5}),
        ("A/enc/0.5000", "recipe_sha256", "0"), ("A/enc/0.5000", "chunks_done", "all"),
        ("A/enc/0.5000", "chunks_done", [-1]), ("A/enc/0.5000", "complete", "yes"),
        ("A/enc/0.5000", DIGESTS, {}), ("A/enc/0.5000", DIGESTS, 3),
    ],
)  # fmt: skip
def test_attributes_are_checked(copy: Path, file: str, attribute: str, value: object, mmap) -> None:
    good = read(copy)
    path = copy / file / "zarr.json"
    node = json.loads(path.read_text())
    node["attributes"][attribute] = value
    path.write_text(json.dumps(node))
    found = read(copy)
    assert isinstance(found["A"], str)
    assert found["B"] == good["B"]
    shown = mmap("info", copy)
    assert shown.returncode in (0, 1)
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("key", ["shape", "data_type", "chunk_grid", "codecs", "zarr_format", "node_type"])
@pytest.mark.parametrize("value", [None, -1, [-1, 3], [10**15, 10**15], "x", {}, []])
@pytest.mark.parametrize("old", [False, True])
def test_descriptions_are_checked(copy: Path, key: str, value: object, old: bool) -> None:
    if old:
        aged(copy)
    good = read(copy)
    path = copy / "A" / "enc" / "0.5000" / "embedding" / "zarr.json"
    node = json.loads(path.read_text())
    node[key] = value
    path.write_text(json.dumps(node))
    found = read(copy)
    assert isinstance(found["A"], str)
    assert found["B"] == good["B"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\x00", b"[" * 100_000, b'{"zarr_format": 3}']
)
@pytest.mark.parametrize("place", ["", "A", "A/spots", "A/enc", "A/enc/0.5000", "A/enc/0.5000/valid"])
def test_files_that_say_nothing_are_one_sentence(copy: Path, content: bytes, place: str) -> None:
    good = read(copy)
    (copy / place / "zarr.json").write_bytes(content)
    if not place:
        with pytest.raises(StoreError):
            FeatureStore.open(copy)
        return
    found = read(copy)
    assert isinstance(found["A"], str)
    assert found["B"] == good["B"]
    problems = [
        line.problem for line in list_contents(FeatureStore.open(copy), verify=True) if line.slide == "A"
    ]
    assert any(problems)


def test_prototypes_that_are_damaged_are_built_again(copy: Path) -> None:
    good = read(copy)
    (centre,) = copy.glob("A/enc/prototypes/*/centre/c/0/0/0")
    centre.write_bytes(b"nonsense")
    assert read(copy) == good
    assert centre.read_bytes() != b"nonsense"
