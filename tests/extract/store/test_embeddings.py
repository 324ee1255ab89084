"""Rows that stay in a store are indexed as NumPy indexes an array in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from mmap_st.data.spots import Spots
from mmap_st.extract.store import FeatureStore, SlideInfo
from mmap_st.extract.store import magnification as module
from mmap_st.extract.store.magnification import StoredEmbeddings, StoredRows, StoredTokens
from mmap_st.extract.store.writing.writer import MagnificationWriter, write_slide

N, WIDTH, SIDE, TOKEN_WIDTH = 23, 3, 2, 4
MPPS = (0.5, 1.0)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[StoredRows, np.ndarray]]:
    """Embeddings and tokens of one slide at two magnifications, with what they hold in memory."""
    store = FeatureStore.create(tmp_path_factory.mktemp("store") / "f.zarr")
    info = SlideInfo("A1", None, None, None, 0.5, "cohort")
    write_slide(store, info, Spots(tuple(map(str, range(N))), np.zeros((N, 2))))
    rng = np.random.default_rng(0)
    values = rng.normal(size=(len(MPPS), N, WIDTH + SIDE**2 * TOKEN_WIDTH)).astype(np.float16)
    for mpp, rows in zip(MPPS, values.astype(np.float32), strict=True):
        recipe = {"encoder": {"name": "enc"}, "mpp": mpp, "tokens": SIDE}
        writer = MagnificationWriter(
            store, "A1", "enc", mpp, recipe, (N, WIDTH), chunk=4, tokens=(SIDE, TOKEN_WIDTH)
        )
        for index in writer.pending():
            part = rows[slice(writer.rows(index).start, writer.rows(index).stop)]
            writer.write_chunk(index, part, np.ones(len(part), np.bool_), np.ones(len(part), np.float32))
        writer.finish({})
    magnifications = list(FeatureStore.open(store.path).slide("A1").complete("enc").values())
    by_row = np.moveaxis(values, 0, 1).astype(np.float32)
    tokens = by_row[..., WIDTH:].reshape(N, len(MPPS), SIDE**2, TOKEN_WIDTH)
    return {
        "embeddings": (StoredEmbeddings(magnifications), by_row[..., :WIDTH]),
        "tokens": (StoredTokens(magnifications), tokens),
    }


INDEX = st.one_of(
    st.slices(N),
    st.lists(st.integers(-N, N - 1), max_size=30).map(lambda rows: np.array(rows, np.int64)),
    numpy_strategies.arrays(np.bool_, N),
)


@pytest.mark.parametrize("kind", ["embeddings", "tokens"])
@pytest.mark.parametrize("most", [1, 5, 1000])
@given(index=INDEX)
def test_any_index_gives_what_numpy_gives(stored, kind: str, most: int, index) -> None:
    rows, expected = stored[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_rows_of_a_block", lambda shape, size=0: most)
        found = rows[index]
    assert found.dtype == np.float32
    assert np.array_equal(found, expected[index])


@pytest.mark.parametrize("index", [[2, 1, 3], [5, 5, 0], [-1, 0, -2], slice(None, None, -3)])
def test_rows_in_any_order_of_a_subset_in_any_order(stored, index) -> None:
    rows, expected = stored["embeddings"]
    chosen = np.array([20, 3, 3, 11, 7, 0])
    assert np.array_equal(rows.subset(chosen)[index], expected[chosen][index])
    assert np.array_equal(rows.at(1)[index][:, 0], expected[index][:, 1])


@pytest.mark.parametrize("index", [np.array([N]), np.array([-N - 1]), np.ones(N + 1, np.bool_)])
def test_rows_that_are_not_there_are_refused(stored, index) -> None:
    with pytest.raises(IndexError):
        stored["embeddings"][0][index]


def test_each_chunk_of_the_store_is_read_once_for_rows_in_any_order(stored, monkeypatch) -> None:
    rows, expected = stored["embeddings"]
    read, asked = StoredEmbeddings._read, []

    def counted(magnification, where):
        asked.append((magnification.mpp, where.start, where.stop))
        return read(magnification, where)

    monkeypatch.setattr(StoredEmbeddings, "_read", staticmethod(counted))
    order = np.random.default_rng(1).permutation(N)
    assert np.array_equal(rows[order], expected[order])
    assert asked == [(0.5, 0, N), (1.0, 0, N)]
