import json
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.data.spots import Spots
from mmap_st.errors import (
    EncoderError,
    HeadError,
    RecipeMismatchError,
    SlideLockedError,
    SlideRecipeError,
    StoreError,
)
from mmap_st.extract.engine.planning.plan import image_fingerprint
from mmap_st.extract.store.reader import (
    FeatureStore,
    check_same_recipe,
    common_magnifications,
)
from mmap_st.extract.store.recipe import check_encoder_name, differences, encode_name, sha256_of_spots
from mmap_st.extract.store.stored_slide import SlideInfo
from mmap_st.extract.store.writing.journal import Journal, MagnificationRows
from mmap_st.extract.store.writing.lock import slide_lock
from mmap_st.extract.store.writing.writer import MagnificationWriter, write_slide
from mmap_st.files import MOST_BYTES

SPOTS = Spots(tuple(f"{i}x1" for i in range(10)), np.arange(20.0).reshape(10, 2))
INFO = SlideInfo("a slide/1", "P", "a.jpg", (100, 80), 0.5, "cohort")
RECIPE = {"encoder": {"name": "enc"}, "weights_sha256": "w", "precision": "fp32", "mpp": 0.5}


def new_store(path: Path) -> FeatureStore:
    store = FeatureStore.create(path)
    write_slide(store, INFO, SPOTS)
    return store


def writer(store: FeatureStore, recipe=RECIPE, *, mpp=0.5, chunk=4, **kwargs) -> MagnificationWriter:
    return MagnificationWriter(store, INFO.name, "enc", mpp, recipe, (10, 3), chunk=chunk, **kwargs)


def fill(target: MagnificationWriter, value: float = 1.0) -> None:
    for index in target.pending():
        n = len(target.rows(index))
        target.write_chunk(
            index, np.full((n, 3), value, np.float32), np.ones(n, np.bool_), np.ones(n, np.float32)
        )


@given(st.text(min_size=1))
def test_names_become_one_safe_segment_and_never_clash(name: str) -> None:
    key = encode_name(name)
    assert "/" not in key
    assert key not in (".", "..")
    assert key.isascii()
    if "~" in key:  # too long, and cut
        assert len(key) <= MOST_BYTES
        assert key != encode_name(name + "x")
    else:
        assert unquote(key, errors="surrogatepass") == name


def test_the_layout_is_format_version_1(tmp_path: Path) -> None:
    store = new_store(tmp_path / "f.zarr")
    target = writer(store)
    fill(target)
    assert not FeatureStore.open(store.path).slide(INFO.name).complete("enc")
    target.finish({"device": "cpu"})
    root = zarr.open_group(tmp_path / "f.zarr", mode="r")
    assert dict(root.attrs) == {"format": "mmap-features", "format_version": 1}
    slide = root["a%20slide%2F1"]
    assert slide.attrs["name"] == "a slide/1"
    assert slide.attrs["size_px"] == [100, 80]
    assert slide.attrs["source_mpp_from"] == "cohort"
    assert [str(v) for v in slide["spots/id"][:]] == list(SPOTS.ids)
    assert slide["spots/xy"].dtype == np.float64
    magnification = slide["enc/0.5000"]
    assert magnification["embedding"].dtype == np.float16
    assert magnification["embedding"].chunks == (4, 3)
    assert magnification["valid"].dtype == np.bool_
    assert magnification["in_bounds"].dtype == np.float32
    attrs = dict(magnification.attrs)
    assert attrs["chunks_done"] == [0, 1, 2]
    assert attrs["complete"] is True
    assert attrs["recipe"] == RECIPE
    assert {"torch", "timm", "zarr", "mmap-st"} <= attrs["versions"].keys()
    # `complete` is the last key written, and nothing is consolidated.
    raw = json.loads((tmp_path / "f.zarr" / "a%20slide%2F1" / "enc" / "0.5000" / "zarr.json").read_text())
    assert list(raw["attributes"])[-1] == "complete"
    assert "consolidated_metadata" not in json.loads((tmp_path / "f.zarr" / "zarr.json").read_text())


def test_invalid_rows_are_nan_and_half_precision_gives_way_to_large_values(tmp_path: Path) -> None:
    store = new_store(tmp_path / "f.zarr")
    target = writer(store)
    valid = np.array([True, False, True, True])
    target.write_chunk(0, np.full((4, 3), 2.0, np.float32), valid, np.ones(4, np.float32))
    target.write_chunk(1, np.full((4, 3), 70_000.0, np.float32), np.ones(4, np.bool_), np.ones(4, np.float32))
    fill(target, 3.0)
    target.finish({})
    magnification = store.slide(INFO.name).complete("enc")[0.5]
    values = magnification.embedding()
    assert np.isnan(values[1]).all()
    assert magnification.valid().tolist() == [True, False] + [True] * 8
    assert values[[0, 2, 4, 8], 0].tolist() == [2.0, 2.0, 70_000.0, 3.0]
    assert magnification.group["embedding"].dtype == np.float32


def test_an_interrupted_magnification_goes_on_from_its_chunks(tmp_path: Path) -> None:
    store = new_store(tmp_path / "f.zarr")
    first = writer(store)
    first.write_chunk(0, np.ones((4, 3), np.float32), np.ones(4, np.bool_), np.ones(4, np.float32))
    again = writer(FeatureStore.open(store.path, writable=True), chunk=1024)
    assert again.chunk_rows == 4  # the chunks that are there decide
    assert again.pending() == (1, 2)
    with pytest.raises(StoreError, match="not written"):
        again.finish({})


def test_rows_of_an_unfinished_chunk_cost_no_look_at_the_store(tmp_path: Path, monkeypatch) -> None:
    """One for each row made the writing thread slower than a GPU."""
    target = writer(new_store(tmp_path / "f.zarr"))
    whole = np.ones(10, np.float32)
    rows = MagnificationRows(
        0.5,
        target,
        Journal(tmp_path / "a.rows", "r", 10, 3),
        lambda: None,
        whole,
        whole,
        np.zeros(10, bool),
    )
    opened = []
    member = zarr.Group.__getitem__
    monkeypatch.setattr(zarr.Group, "__getitem__", lambda *args: opened.append(args) or member(*args))
    for part in ([9, 4], [1, 5, 8], [7, 0, 3, 2]):
        rows.add(np.array(part), np.ones((len(part), 3), np.float32), np.ones(len(part), bool))
    assert not opened
    assert target.pending() == (1,)  # row 6 is missing
    rows.add(np.array([6]), np.ones((1, 3), np.float32), np.ones(1, bool))
    assert target.pending() == ()


def test_another_recipe_is_refused_with_the_difference_unless_overwritten(tmp_path: Path) -> None:
    store = new_store(tmp_path / "f.zarr")
    target = writer(store)
    fill(target)
    target.finish({})
    other = {**RECIPE, "precision": "bf16"}
    with pytest.raises(RecipeMismatchError, match=r"precision: stored fp32, asked bf16.*--overwrite"):
        writer(store, other)
    assert store.slide(INFO.name).complete("enc")
    replaced = writer(store, other, overwrite=True)
    assert len(replaced.pending()) == 3
    assert not store.slide(INFO.name).complete("enc")


def test_a_kill_while_an_array_is_replaced_leaves_nothing_that_counts(tmp_path: Path) -> None:
    store = new_store(tmp_path / "f.zarr")
    target = writer(store)
    fill(target)
    target.finish({})
    folder = tmp_path / "f.zarr" / "a%20slide%2F1" / "enc" / "0.5000"
    shutil.rmtree(folder / "embedding")  # as a process that died between deleting and creating
    assert writer(store).pending() == (0, 1, 2)
    fill(writer(store))
    # An overwrite that dies at its first step has already withdrawn what was published.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MagnificationWriter, "_start", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer(store, {**RECIPE, "precision": "bf16"}, overwrite=True)
    assert writer(store).pending() == (0, 1, 2)


def test_the_order_of_chunks_does_not_change_a_number(tmp_path: Path) -> None:
    values = np.full((10, 3), 1.0 + 2**-15, np.float32)
    values[5] = 80_000.5
    found = []
    for order in ((0, 1, 2), (1, 2, 0)):
        store = new_store(tmp_path / f"{order[0]}.zarr")
        target = writer(store)
        for index in order:
            rows = target.rows(index)
            ones = np.ones(len(rows))
            target.write_chunk(index, values[rows.start : rows.stop], ones > 0, ones.astype(np.float32))
        target.finish({})
        found.append(store.slide(INFO.name).complete("enc")[0.5].embedding())
    assert np.array_equal(*found)
    assert found[0][5, 0] == np.float32(80_000.5)


def test_other_spots_of_a_slide_are_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path / "f.zarr")
    write_slide(store, INFO, SPOTS)  # the same: nothing to say
    moved = Spots(SPOTS.ids, SPOTS.xy + 1)
    for spots in (moved, Spots(SPOTS.ids[::-1], SPOTS.xy), Spots(SPOTS.ids[:5], SPOTS.xy[:5])):
        with pytest.raises(SlideRecipeError, match="other spots"):
            write_slide(store, INFO, spots)


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a feature store"):
        FeatureStore.open(tmp_path / "no.zarr")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(StoreError, match="name another place"):
        FeatureStore.create(tmp_path / "full")
    zarr.create_group(tmp_path / "other.zarr", attributes={"format": "images"})
    with pytest.raises(StoreError, match="another kind"):
        FeatureStore.create(tmp_path / "other.zarr")
    zarr.create_group(tmp_path / "later.zarr", attributes={"format": "mmap-features", "format_version": 2})
    with pytest.raises(StoreError, match="format version 2"):
        FeatureStore.open(tmp_path / "later.zarr")


def test_slides_and_magnifications_that_are_not_there(tmp_path: Path) -> None:
    store = new_store(tmp_path / "f.zarr")
    with pytest.raises(StoreError, match="has no slide B"):
        store.slide("B")
    target = writer(store)
    fill(target)
    target.finish({})
    slide = store.slide(INFO.name)
    assert common_magnifications([slide], "enc", None) == (0.5,)
    with pytest.raises(StoreError, match=r"2\.0000 um/px is not complete on a slide/1"):
        common_magnifications([slide], "enc", (0.5, 2.0))
    with pytest.raises(StoreError, match="No magnification of encc is complete"):
        common_magnifications([slide], "encc", None)


def test_slides_embedded_by_different_weights_do_not_mix(tmp_path: Path) -> None:
    store = new_store(tmp_path / "f.zarr")
    for mpp, weights in ((0.5, "w"), (1.0, "v")):
        target = writer(store, {**RECIPE, "weights_sha256": weights, "mpp": mpp}, mpp=mpp)
        fill(target)
        target.finish({})
    slide = store.slide(INFO.name)
    assert check_same_recipe([slide], "enc", (0.5,))["weights_sha256"] == "w"
    with pytest.raises(HeadError, match="weights_sha256: stored w, asked v"):
        check_same_recipe([slide], "enc", (0.5, 1.0))


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    store = new_store(tmp_path / "f.zarr")
    target = writer(store)

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr.Array, "__setitem__", no_space)
    with pytest.raises(StoreError, match=r"No space left on device.*free some space"):
        fill(target)
    monkeypatch.undo()
    assert writer(store).pending() == (0, 1, 2)


def test_a_lock_is_exclusive_and_ends_with_its_process(tmp_path: Path) -> None:
    store = tmp_path / "f.zarr"
    code = (
        "import sys, pathlib\n"
        "from mmap_st.extract.store.writing.lock import slide_lock\n"
        "with slide_lock(pathlib.Path(sys.argv[1]), 'A1'):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    busy = rf"another process \({holder.pid} on .*\) is writing it"
    with pytest.raises(SlideLockedError, match=busy), slide_lock(store, "A1"):
        pass
    with slide_lock(store, "B1"):
        pass
    holder.kill()  # as kill -9: nothing is cleaned up
    holder.wait()
    with slide_lock(store, "A1"):
        pass


def test_recipes_compare_value_by_value() -> None:
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "d": 3}) == [
        "a.b: stored 1, asked 2",
        "d: stored nothing, asked 3",
    ]


def test_fingerprints_see_content_and_order(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    prints = []
    for content in (b"a" * 3_000_000, b"a" * 2_999_999 + b"b", b"b" + b"a" * 2_999_999):
        path.write_bytes(content)
        prints.append(json.dumps(image_fingerprint(path, (1, 2))))
    assert len(set(prints)) == 3
    assert sha256_of_spots(SPOTS) != sha256_of_spots(Spots(SPOTS.ids[::-1], SPOTS.xy))


@pytest.mark.parametrize(
    "name", ["", " ", "spots", "SPOTS", "prototypes", "zarr.json", "Zarr.JSON", "...", "__init", "a.partial"]
)
def test_names_that_an_encoder_cannot_have_in_a_store(tmp_path: Path, name: str) -> None:
    store = new_store(tmp_path / "f.zarr")
    with pytest.raises(EncoderError, match="cannot be the name of an encoder"):
        MagnificationWriter(store, INFO.name, name, 0.5, RECIPE, (10, 3), chunk=4)
    assert store.slide(INFO.name).spot_ids() == SPOTS.ids
    assert set(store.slide(INFO.name).group["spots"].attrs) == {"complete", "digests"}


@pytest.mark.parametrize("name", ["uni", "spots2", "timm:vit", "a.b", "_x", "hub:ORG/NAME", "zarr"])
def test_other_names_of_encoders_can_be_used(name: str) -> None:
    check_encoder_name(name)


# A magnification whose values outgrow float16


def wide_values(n: int, width: int) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(n, width)).astype(np.float16).astype(np.float32)
    values[-1, 0] = 80_000.5
    return values


def write_rows(target: MagnificationWriter, values: np.ndarray) -> None:
    for index in target.pending():
        rows = target.rows(index)
        ones = np.ones(len(rows))
        target.write_chunk(index, values[rows.start : rows.stop], ones > 0, ones.astype(np.float32))


def large_writer(path: Path, n: int, width: int, chunk: int) -> MagnificationWriter:
    store = FeatureStore.create(path)
    if not store.has_slide("L"):
        write_slide(store, replace(INFO, name="L"), Spots(tuple(map(str, range(n))), np.zeros((n, 2))))
    return MagnificationWriter(store, "L", "enc", 0.5, RECIPE, (n, width), chunk=chunk)


def test_widening_takes_the_memory_of_some_chunks(tmp_path: Path) -> None:
    n, width, chunk = 8192, 512, 256  # 16 MiB as float32, half a MiB a chunk
    values = wide_values(n, width)
    target = large_writer(tmp_path / "f.zarr", n, width, chunk)
    write_rows_until = target.pending()[:-1]
    ones = np.ones(chunk)
    for index in write_rows_until:
        rows = target.rows(index)
        target.write_chunk(index, values[rows.start : rows.stop], ones > 0, ones.astype(np.float32))
    tracemalloc.start()
    write_rows(target, values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 << 20
    target.finish({})
    (stored,) = FeatureStore.open(tmp_path / "f.zarr").slide("L").magnifications("enc")
    assert np.array_equal(stored.embedding(), values)


class Kill(BaseException):
    """Ends a process wherever it is."""


def test_a_kill_anywhere_while_an_array_is_widened_never_leaves_wrong_rows(tmp_path: Path) -> None:
    n, width, chunk = 10, 3, 3
    values = wide_values(n, width)
    steps = 0
    for kill_at in range(200):
        path = tmp_path / f"{kill_at}.zarr"
        target = large_writer(path, n, width, chunk)
        calls = [0]

        def dying(original, at=kill_at, calls=calls):
            def call(*args, **kwargs):
                calls[0] += 1
                if calls[0] > at:
                    raise Kill
                return original(*args, **kwargs)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(zarr.Array, "__setitem__", dying(zarr.Array.__setitem__))
            patch.setattr(
                zarr.core.attributes.Attributes,
                "__setitem__",
                dying(zarr.core.attributes.Attributes.__setitem__),
            )
            patch.setattr(zarr.Group, "create_array", dying(zarr.Group.create_array))
            patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
            patch.setattr(Path, "rename", dying(Path.rename))
            try:
                write_rows(target, values)
            except Kill:
                pass
            else:
                steps = kill_at
                break
        again = large_writer(path, n, width, chunk)
        for index in set(range(again.n_chunks)) - set(again.pending()):
            rows = slice(again.rows(index).start, again.rows(index).stop)
            assert np.array_equal(np.asarray(again._arrays["embedding"][rows], np.float32), values[rows])
        write_rows(again, values)
        again.finish({})
        (stored,) = FeatureStore.open(path).slide("L").magnifications("enc")
        assert np.array_equal(stored.embedding(), values)
        assert sorted(p.name for p in (path / "L" / "enc" / "0.5000").iterdir() if p.is_dir()) == [
            "embedding", "in_bounds", "tissue", "valid",
        ]  # fmt: skip
    assert steps > 20  # every step of it was tried
