"""Files of embeddings made elsewhere, and which of their rows belongs to which spot."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.data.spots import Spots
from mmap_st.errors import FeaturesError
from mmap_st.extract.imports.files import Features, patch_level0, read_features
from mmap_st.extract.imports.matching import (
    CoordinateOptions,
    match_by_coordinate,
    match_by_id,
    match_by_order,
    match_coordinates,
)

PATCH = 224
HERE = Path("f.h5")


def embeddings(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)


def write_h5(path: Path, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    return path


# Matching


@given(st.integers(1, 40), st.integers(0, 10), st.randoms(use_true_random=False))
def test_rows_are_found_by_id_whatever_their_order(n: int, extra: int, random) -> None:
    spots = [f"AAAC{i}-1" for i in range(n)]
    kept = random.sample(spots, random.randint(-(-n // 2), n))
    names = kept + [f"other{i}" for i in range(extra)]
    random.shuffle(names)
    match = match_by_id(spots, names, HERE)
    for name, row in zip(spots, match.rows, strict=True):
        assert (names[row] == name) if name in kept else row == -1
    assert (match.matched, match.spare) == (len(kept), extra)
    with pytest.raises(FeaturesError, match="repeats ids"):
        match_by_id(spots, [*names, names[0]], HERE)


def test_ids_that_do_not_fit_are_refused_though_the_number_of_rows_does() -> None:
    with pytest.raises(FeaturesError, match=r"only 1 of 4 spots \(such as a, b, c and 1 more\)"):
        match_by_id(["a", "b", "c", "d"], ["a", "B", "C", "D"], HERE)


@given(st.integers(2, 7), st.floats(0, 0.99), st.data())
def test_rows_are_found_by_place_whatever_their_order(side: int, jitter: float, data) -> None:
    """Spots 100 px apart, patches up to 20 px off: each finds its own, and a missing one finds none."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    xy = np.array([(x, y) for y in range(side) for x in range(side)], np.float64) * 100
    kept = rng.permutation(len(xy))[: data.draw(st.integers(1, len(xy)))]
    angle = rng.uniform(0, 2 * np.pi, len(kept))
    centres = xy[kept] + 20 * jitter * np.column_stack([np.cos(angle), np.sin(angle)])
    match = match_by_coordinate(xy, centres, 20.0)
    expected = np.full(len(xy), -1)
    expected[kept] = np.arange(len(kept))
    assert match.rows.tolist() == expected.tolist()
    assert (match.spare, match.contested) == (0, 0)
    assert match.largest_px == pytest.approx(20 * jitter, abs=1e-6)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_matching_by_place_equals_its_plain_reference(n: int, m: int, span: int, seed: int) -> None:
    """On a coarse grid, so that doubles and ties abound."""
    rng = np.random.default_rng(seed)
    xy, centres = rng.integers(0, span, (n, 2)).astype(float), rng.integers(0, span, (m, 2)).astype(float)
    distance = np.linalg.norm(xy[:, None] - centres[None], axis=2)
    expected = np.full(n, -1)
    for i in range(n):
        j = int(distance[i].argmin())
        nearest_to_both = distance[i, j] <= min(distance[i].min(), distance[:, j].min())
        alone = (
            (distance[i] < distance[i, j] + 1e-6).sum() == 1 == (distance[:, j] < distance[i, j] + 1e-6).sum()
        )
        if distance[i, j] <= 1.5 and nearest_to_both and alone:
            expected[i] = j
    match = match_by_coordinate(xy, centres, 1.5)
    assert match.rows.tolist() == expected.tolist()
    used = match.rows[match.rows >= 0]
    assert len(set(used.tolist())) == len(used)
    assert match.spare == m - len(used)
    assert match.contested == int(((distance.min(axis=1) <= 1.5) & (expected < 0)).sum())


GRID = np.array([(x, y) for y in range(1, 5) for x in range(1, 5)], np.float64) * 290


@pytest.mark.parametrize(
    ("coords", "patch", "options", "part"),
    [
        (GRID, PATCH, CoordinateOptions(), "are centres, not corners: give --coords centre"),
        (GRID - 112, PATCH, CoordinateOptions(coords="centre"), "are corners, not centres"),
        (GRID - 112, None, CoordinateOptions(coords="centre"), "give --patch-px 224 and leave out --coords"),
        (np.repeat(GRID, 2, axis=0) - 112, PATCH, CoordinateOptions(), "keep one row a spot"),
        (GRID - 112, 256, CoordinateOptions(), "give --patch-px 224"),
        (GRID[:, ::-1] * (1, 3) - 112, PATCH, CoordinateOptions(), "x and y are exchanged"),
        (GRID - (112, 82), PATCH, CoordinateOptions(), "about 0 px in x and 30 px in y: check what"),
        (GRID * 4, PATCH, CoordinateOptions(), "check that it is of this slide"),
        (GRID - 112, None, CoordinateOptions(), "give --patch-px"),
        (GRID - 112, PATCH, CoordinateOptions(tolerance_um=110), "reaches beyond the middle between two spots"),
    ],
)  # fmt: skip
def test_coordinates_that_do_not_meet_say_what_is_wrong(coords, patch, options, part) -> None:
    xy = GRID if "exchanged" not in part else GRID * (3, 1)
    features = Features(HERE, embeddings(len(coords)), coords=coords, patch_px=patch)
    with pytest.raises(FeaturesError) as caught:
        match_coordinates(xy, features, options, 0.69)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tolerance_in_micrometres_needs_the_slides_scale() -> None:
    features = Features(HERE, embeddings(16), coords=GRID - 112, patch_px=PATCH)
    with pytest.raises(FeaturesError, match="give --tolerance-px, or --source-mpp"):
        match_coordinates(GRID, features, CoordinateOptions(), None)
    assert match_coordinates(GRID, features, CoordinateOptions(tolerance_px=2), None).matched == 16
    assert match_coordinates(GRID, features, CoordinateOptions(), 0.69).matched == 16
    # Bins 2 um apart: the default does not reach over to the next.
    near = Features(HERE, embeddings(16), coords=GRID / 290 * 2 - 112, patch_px=PATCH)
    assert match_coordinates(GRID / 290 * 2, near, CoordinateOptions(), 1.0).matched == 16


def test_by_order_needs_as_many_rows_and_says_why_there_are_more() -> None:
    spots = Spots(("a", "b", "c"), np.eye(3, 2), counts_without_position=2, positions_without_counts=1)
    assert match_by_order(spots, 3, HERE).rows.tolist() == [0, 1, 2]
    with pytest.raises(FeaturesError, match="count table has 5 rows too, 2 of them without a position"):
        match_by_order(spots, 5, HERE)
    with pytest.raises(FeaturesError, match="spot table has 4 rows too, 1 of them without counts"):
        match_by_order(spots, 4, HERE)
    with pytest.raises(FeaturesError, match="7 rows without ids or coordinates and the slide has 3 spots"):
        match_by_order(spots, 7, HERE)


# Files


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20}, 512),
        ({"patch_size": 256, "level0_magnification": 40, "target_magnification": 10}, 1024),
        ({"patch_size": 256, "patch_size_level0": "None", "level0_magnification": "None"}, None),
        ({"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])}, 1024),
        ({"patch_size": 256, "patch_level": 1, "downsample": 4.0, "custom_downsample": 2}, 2048),
        ({"patch_size": 256, "patch_level": 0}, 256),
        ({"patch_size": 256, "patch_level": 1}, None),
        ({"patch_size": 256}, None),
        ({}, None),
    ],
)
def test_the_side_of_a_patch_at_level_0(attributes: dict, expected: float | None) -> None:
    assert patch_level0(attributes) == expected


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"coords": np.zeros((4, 2))}, "it holds coords"),
        ({"features": np.zeros((4, 2)), "embeddings": np.zeros((4, 2))}, "should hold one of"),
        ({"features": np.zeros(4)}, "is of shape (4,)"),
        ({"features": np.zeros((0, 4))}, "is of shape (0, 4)"),
        ({"features": np.zeros((4, 2), int)}, "holds int64"),
        ({"features": np.zeros((4, 2)), "coords": np.zeros((3, 2))}, "coordinates of shape (3, 2)"),
        ({"features": np.zeros((4, 2)), "coords": np.full((4, 2), np.nan)}, "should be finite"),
        ({"features": np.zeros((4, 2)), "barcodes": np.array([b"a"])}, "ids of shape (1,)"),
        ({"features": np.zeros((1, 2)), "barcodes": np.array([b"\xff"])}, "not UTF-8"),
    ],
)
def test_h5_files_that_do_not_hold_what_they_should(tmp_path: Path, arrays, part) -> None:
    with pytest.raises(FeaturesError) as caught:
        read_features(write_h5(tmp_path / "A1.h5", **arrays))
    assert part in str(caught.value)
    assert "A1.h5" in str(caught.value)


def test_files_that_are_broken_or_of_another_kind(tmp_path: Path) -> None:
    whole = write_h5(tmp_path / "A1.h5", features=embeddings(16), coords=GRID).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", np.zeros((4, 2)))
    (tmp_path / "two.npz").rename(tmp_path / "two.npy")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "features.pt").touch()
    expected = {
        "cut.h5": "cannot be read as HDF5",
        "pickle.npy": "cannot be read as .npy",
        "two.npy": "several arrays",
        "empty.npy": "cannot be read as .npy",
        "features.pt": "of no kind that can be imported",
        "gone.npy": "does not exist",
    }
    for name, part in expected.items():
        with pytest.raises(FeaturesError, match=part):
            read_features(tmp_path / name)
    hest = write_h5(tmp_path / "h.h5", features=embeddings(2), barcode=np.array([[b""], [b""]]))
    assert read_features(hest).ids is None  # how HEST says that it has none
