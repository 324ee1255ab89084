"""What a viewer shows of slides: values as they are in the files, and one clear sentence where something is not."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anndata
import numpy as np
import pytest
from PIL import Image
from scipy import sparse

import mmap_st as mm
from mmap_st.errors import RegionError, RequestError, SlidesFailedError
from mmap_st.prototypes import candidates_in
from mmap_st.report.viewer import Answers, answers, first_slide, open_catalogue
from mmap_st.report.viewer.catalogue import Catalogue
from tests.conftest import Tiny
from tests.report.viewer.conftest import Client


def about(client: Client, key: str = "0") -> dict[str, Any]:
    return json.loads(client(f"slides/{key}/about.json")[1])


def floats(client: Client, path: str) -> np.ndarray:
    status, body, headers = client(path)
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    return np.frombuffer(body, "<f4")


def opened(where: Path, **arguments: Any) -> Catalogue:
    return open_catalogue(where, **arguments)


@pytest.fixture
def copy(shown: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shown, tmp_path / "copy"))


def changed(folder: Path, slide: str, change: Callable[[anndata.AnnData], object]) -> None:
    table = anndata.read_h5ad(folder / f"{slide}.h5ad")
    change(table)
    table.write_h5ad(folder / f"{slide}.h5ad", compression="gzip")


def test_values_are_those_of_the_file(client: Client, shown: Path) -> None:
    keys = {one["name"]: one["key"] for one in json.loads(client("slides.json")[1])["slides"]}
    assert list(keys) == ["A1", "B1", "C1"]
    for slide, key in keys.items():
        table = anndata.read_h5ad(shown / f"{slide}.h5ad")
        said = about(client, key)
        assert said["genes"] == list(table.var_names)
        assert said["units"] == table.uns["mmap"]["units"]
        assert said["spots"] == len(table)
        assert [layer["name"] for layer in said["layers"]] == [
            "predicted",
            "measured",
            "difference",
            "spread",
        ]
        assert json.loads(client(f"slides/{key}/ids.json")[1]) == list(table.obs_names)
        mpp = table.uns["mmap"]["source_mpp"]
        xy = floats(client, f"slides/{key}/spots").reshape(-1, 2)
        assert np.allclose(xy, table.obsm["spatial"] * [mpp, -mpp], rtol=1e-5)
        assert said["diameter"] == pytest.approx(table.uns["mmap"]["spot_diameter_px"] * mpp)
        for gene in table.var_names[[0, -1]]:
            of = table[:, gene]
            wanted = {
                "predicted": of.X,
                "measured": of.layers["measured"],
                "spread": of.layers["spread"],
                "difference": of.X - of.layers["measured"],
            }
            for layer, values in wanted.items():
                found = floats(client, f"slides/{key}/values/{layer}/{quote(gene)}")
                assert np.array_equal(found, np.asarray(values).ravel(), equal_nan=True)


def test_tiles_are_of_the_slide_that_predictions_name(client: Client) -> None:
    said = json.loads(client("slides/0/figure.json")[1])
    assert "WMTSTileSource" in json.dumps(said)
    assert not about(client)["notes"]
    status, body, headers = client("slides/0/tiles/0/0/0")
    assert (status, headers["content-type"], body[:3]) == (200, "image/jpeg", b"\xff\xd8\xff")
    assert client("slides/0/overview.jpg")[1][:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize(
    "gene", ["A/B", "a%2fb", "..", "é µ", "?x=1", "#", "%00", '<img src=x onerror="1">', " ", "."]
)
def test_any_name_of_a_gene_is_a_key(gene: str, copy: Path, serve: Callable[..., Client]) -> None:
    changed(copy, "A1", lambda table: setattr(table, "var_names", [gene, *table.var_names[1:]]))
    client = serve(copy)
    table = anndata.read_h5ad(copy / "A1.h5ad")
    found = floats(client, f"slides/0/values/predicted/{quote(gene, safe='')}")
    assert np.array_equal(found, np.asarray(table.X)[:, 0])


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix])
def test_sparse_values_that_other_tools_wrote(kind: Any, copy: Path, serve: Callable[..., Client]) -> None:
    changed(copy, "A1", lambda table: setattr(table, "X", kind(np.nan_to_num(table.X))))
    table = anndata.read_h5ad(copy / "A1.h5ad")
    gene = table.var_names[3]
    found = floats(serve(copy), f"slides/0/values/predicted/{gene}")
    assert np.array_equal(found, table.X[:, [3]].toarray().ravel())


def test_values_are_kept_within_bounds(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "VALUE_CACHE_BYTES", 1000)
    catalogue = opened(shown)
    found = Answers(catalogue, first_slide(catalogue, None))
    for gene in catalogue["A1"].genes:
        for layer in ("predicted", "measured", "spread"):
            found(f"slides/0/values/{layer}/{gene}")
    assert 0 <= found.kept.held_bytes <= 1000
    for key in "012":
        found(f"slides/{key}/about.json")
    assert len(catalogue._open) <= 3


def test_nothing_of_the_values_is_read_before_a_gene_is_chosen(
    copy: Path, serve: Callable[..., Client]
) -> None:
    """A folder whose arrays are damaged opens, and says so where one is asked for."""
    client = serve(copy)
    assert about(client)["spots"] > 0
    (copy / "A1.h5ad").write_bytes(b"damaged meanwhile")
    gene = about(client)["genes"][0]
    status, body, _ = client(f"slides/0/values/predicted/{gene}")
    assert status == 500
    assert "A1.h5ad cannot be read" in json.loads(body)["error"]
    assert about(client, "1")["name"] == "B1"


def test_a_file_that_was_replaced_by_another_slide_is_not_mixed_up(
    copy: Path, serve: Callable[..., Client]
) -> None:
    client = serve(copy)
    gene = about(client)["genes"][0]
    table = anndata.read_h5ad(copy / "A1.h5ad")
    table[:-1].copy().write_h5ad(copy / "A1.h5ad")
    status, body, _ = client(f"slides/0/values/predicted/{gene}")
    assert (status, "has changed" in json.loads(body)["error"]) == (500, True)


# Genes and slides that are asked for.


def test_the_genes_that_are_asked_for_come_first(shown: Path) -> None:
    panel = list(anndata.read_h5ad(shown / "A1.h5ad").var_names)
    catalogue = opened(shown, genes=[panel[4], panel[2]])
    slide = catalogue[first_slide(catalogue, "B1")]
    assert slide.name == "B1"
    assert slide.best == panel[4]
    assert list(slide.genes) == [panel[4], panel[2], *(g for g in panel if g not in (panel[4], panel[2]))]
    of = anndata.read_h5ad(shown / "B1.h5ad")[:, panel[4]]
    assert np.array_equal(slide.read("predicted", panel[4]), of.X.ravel(), equal_nan=True)


def test_a_gene_of_another_slide_opens_that_slide(copy: Path) -> None:
    changed(copy, "B1", lambda table: setattr(table, "var_names", ["ONLYHERE", *table.var_names[1:]]))
    catalogue = opened(copy, genes=["ONLYHERE"])
    assert first_slide(catalogue, None) == "B1"


@pytest.mark.parametrize(
    ("arguments", "slide", "said"),
    [
        ({}, "A", r"--slide A: there is no such slide to show \(did you mean .*A1.*\); there are A1, B1, C1"),
        ({"genes": ["NOGENE"]}, None, r"--genes: NOGENE is not on the panel"),
        (
            {"genes": ["hvg:20"]},
            None,
            r"--genes hvg:20: a map draws genes that are named; give names or ids of genes",
        ),
    ],
)
def test_what_is_not_there_is_one_sentence(
    arguments: dict[str, Any], slide: str | None, said: str, shown: Path
) -> None:
    catalogue = opened(shown, **arguments)
    with pytest.raises(RequestError, match=said):
        first_slide(catalogue, slide)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist; name a folder of predictions"),
        (lambda path: path.mkdir(), "holds no predictions"),
        (lambda path: path.write_text("x"), "holds no predictions"),
    ],
    ids=["nothing", "empty", "a file"],
)
def test_a_place_without_slides_is_one_sentence(make: Any, said: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(RequestError, match=said):
        opened(tmp_path / "x")


def test_one_bad_file_leaves_the_others(copy: Path) -> None:
    (copy / "B1.h5ad").write_bytes(b"nothing")
    anndata.AnnData(np.zeros((2, 2), np.float32)).write_h5ad(copy / "C1.h5ad")
    catalogue = opened(copy)
    assert catalogue.names == ("A1",)
    assert "cannot be read" in catalogue.failed["B1"]
    assert "is not a prediction of mmap" in catalogue.failed["C1"]
    with pytest.raises(RequestError, match=r"--slide B1: .*cannot be read"):
        first_slide(catalogue, "B1")
    (copy / "A1.h5ad").write_bytes(b"nothing")
    with pytest.raises(SlidesFailedError, match="A1"):
        opened(copy)


def test_arrays_that_do_not_fit_fail_that_slide(copy: Path) -> None:
    import h5py

    with h5py.File(copy / "A1.h5ad", "a") as file:
        rows = file["X"][:-1]
        del file["X"]
        file["X"] = rows
    catalogue = opened(copy)
    assert first_slide(catalogue, None) == "B1"
    with pytest.raises(Exception, match="do not fit"):
        catalogue["A1"]


def test_two_files_of_one_slide_are_both_shown(copy: Path) -> None:
    shutil.copy(copy / "A1.h5ad", copy / "again.h5ad")
    assert opened(copy).names == ("A1", "B1", "C1", "A1 (again.h5ad)")


# Images.


def test_without_an_image_spots_lie_on_the_thumbnail_or_on_white(
    copy: Path, serve: Callable[..., Client]
) -> None:
    def moved(table: anndata.AnnData) -> None:
        table.uns["mmap"]["image"] = str(copy / "gone.svs")

    def bare(table: anndata.AnnData) -> None:
        del table.uns["spatial"], table.uns["mmap"]["image"], table.uns["mmap"]["source_mpp"]

    changed(copy, "A1", moved)
    changed(copy, "B1", bare)
    client = serve(copy)
    (note,) = about(client)["notes"]
    assert "gone.svs does not exist" in note
    assert note.endswith("the picture is a thumbnail")
    assert client("slides/0/tiles/0/0/0")[0] == 404
    notes = about(client, "1")["notes"]
    assert notes[0] == "no image of this slide is known; spots lie on white"
    assert "no scale bar" in notes[1]
    assert about(client, "1")["unit"] == "px"
    assert client("slides/1/overview.jpg")[0] == 404
    assert "ScaleBar" not in client("slides/1/figure.json")[1].decode()


def test_a_cohort_gives_images_and_measured_values(
    tiny: Tiny, copy: Path, serve: Callable[..., Client]
) -> None:
    def bare(table: anndata.AnnData) -> None:
        del table.uns["mmap"]["image"], table.layers["measured"]

    wanted = anndata.read_h5ad(copy / "A1.h5ad")
    changed(copy, "A1", bare)
    client = serve(copy, mm.read_cohort(f"her2st:{tiny.her2st}"))
    said = about(client)
    assert not said["notes"]
    gene = said["genes"][1]
    found = floats(client, f"slides/0/values/measured/{gene}")
    assert np.allclose(found, wanted[:, gene].layers["measured"].ravel(), equal_nan=True)
    assert "difference" in [layer["name"] for layer in said["layers"]]


def test_a_cohort_of_other_slides_is_refused(tiny: Tiny, copy: Path) -> None:
    cohort = mm.read_cohort(f"her2st:{tiny.her2st}").only(["C1"])
    (copy / "C1.h5ad").unlink()
    with pytest.raises(RequestError, match=r"none of the slides of --cohort \(C1\) is in .* \(A1, B1\)"):
        opened(copy, cohort=cohort)


# Stores.


@pytest.fixture
def bare_store(tiny: Tiny, tmp_path: Path) -> Path:
    """The embedded slides, without the prototypes that other tests have made."""
    store = Path(shutil.copytree(tiny.store, tmp_path / "features.zarr"))
    for folder in store.glob("*/*/prototypes"):
        shutil.rmtree(folder)
    return store


def test_a_store_shows_its_prototypes(bare_store: Path, serve: Callable[..., Client]) -> None:
    mm.pl.prototypes(bare_store, "A1")
    store = mm.FeatureStore(bare_store)
    client = serve(bare_store, slide="A1")
    layer = about(client)["layers"][0]
    ((title, candidates),) = candidates_in(store.slide("A1")).items()
    assert title == "efficientnet-lite0 at 0.5, 1 um/px"
    assert layer["title"] == f"{len(candidates.size)} prototypes of {title}"
    assert len(layer["colours"]) == len(candidates.size)
    assert all(len(colour) == 7 for colour in layer["colours"])
    assert np.array_equal(floats(client, "slides/0/values/prototypes0"), candidates.label)
    assert client("slides/0/values/prototypes0/G")[0] == 404
    assert "no image of this slide is known" in about(client)["notes"][0]


def test_a_store_without_prototypes_shows_plain_spots(bare_store: Path, serve: Callable[..., Client]) -> None:
    client = serve(bare_store)
    assert [layer["name"] for layer in about(client)["layers"]] == ["spots"]
    assert "no prototypes" in about(client)["notes"][0]
    assert not floats(client, "slides/0/values/spots").any()
    assert not list(bare_store.glob("*/*/prototypes"))  # nothing is written


def test_each_set_of_prototypes_is_a_layer(bare_store: Path, serve: Callable[..., Client]) -> None:
    mm.pl.prototypes(bare_store, "A1")
    mm.pl.prototypes(bare_store, "A1", mpp=0.5, kind="random", clusters=8)
    mm.pl.prototypes(bare_store, "A1", mpp=0.5, kind="random", clusters=9)
    titles = sorted(layer["title"].partition(" of ")[2] for layer in about(serve(bare_store))["layers"])
    assert titles == [
        "efficientnet-lite0 at 0.5 um/px, random",
        "efficientnet-lite0 at 0.5 um/px, random (2)",
        "efficientnet-lite0 at 0.5, 1 um/px",
    ]


def test_counts_that_cannot_be_read_leave_the_prototypes(
    tiny: Tiny, bare_store: Path, tmp_path: Path, serve: Callable[..., Client]
) -> None:
    mm.pl.prototypes(bare_store, "A1")
    (tmp_path / "bad.tsv").write_text("nothing of a table")
    cohort = mm.read_cohort(f"her2st:{tiny.her2st}")
    bad = replace(cohort, slides=tuple(replace(row, counts=tmp_path / "bad.tsv") for row in cohort.slides))
    said = about(serve(bare_store, bad))
    assert [layer["name"] for layer in said["layers"]] == ["prototypes0"]
    assert "no measured values: " in said["notes"][0]


def test_a_part_that_cannot_be_decoded_is_seen_and_ends_nothing(
    shown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = opened(shown)
    found = Answers(catalogue, first_slide(catalogue, None))
    whole = found("slides/0/tiles/0/0/0")

    def damaged(*place: object) -> bytes:
        raise RegionError("it cannot be decoded.")

    monkeypatch.setattr(found.tiles, "tile", damaged)
    marked = found("slides/0/tiles/0/0/0")
    assert marked.kind == "image/jpeg"
    assert whole.keep
    assert not marked.keep
    colours = np.asarray(Image.open(io.BytesIO(marked.body)).convert("RGB"), int)
    assert np.ptp(colours.mean(axis=(0, 1))) < 3  # grey, as no tissue is
    assert colours.std() > 10  # and hatched, as no glass is


def test_a_store_with_a_cohort_shows_measured_genes(
    tiny: Tiny, shown: Path, serve: Callable[..., Client]
) -> None:
    client = serve(tiny.store, mm.read_cohort(f"her2st:{tiny.her2st}"))
    said = about(client)
    assert said["layers"][-1]["name"] == "measured"
    table = anndata.read_h5ad(shown / "A1.h5ad")
    assert said["units"] == table.uns["mmap"]["units"]
    for gene in table.var_names[:3]:
        found = floats(client, f"slides/0/values/measured/{gene}")
        assert np.allclose(found, table[:, gene].layers["measured"].ravel(), equal_nan=True)
    assert not said["notes"]
    assert client("slides/0/tiles/0/0/0")[0] == 200


def test_another_image_than_the_one_embedded_is_not_shown(
    tiny: Tiny, tmp_path: Path, serve: Callable[..., Client]
) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "other.png")
    cohort = mm.read_cohort(f"her2st:{tiny.her2st}")
    wrong = replace(cohort, slides=tuple(replace(row, image=tmp_path / "other.png") for row in cohort.slides))
    client = serve(tiny.store, wrong)
    assert any("other.png is not shown: it has 300 x 200 pixels" in note for note in about(client)["notes"])
    assert client("slides/0/tiles/0/0/0")[0] == 404
    assert floats(client, "slides/0/spots").size
