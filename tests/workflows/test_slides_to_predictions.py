"""`mmap predict` of slides that are not embedded yet: images, folders and cohorts."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import timm
import torch
import zarr
from PIL import Image

import mmap_st as mm
from mmap_st.data import Cohort
from mmap_st.errors import (
    EncoderError,
    MmapWarning,
    RecipeMismatchError,
    RequestError,
    SlidesFailedError,
    SlidesLeftOutWarning,
)
from mmap_st.extract.encoders import EncoderSpec, build_encoder, families
from mmap_st.extract.engine import encoder_request
from mmap_st.head.neighbourhood import spot_pitch
from mmap_st.report import run_page
from mmap_st.workflows.head_embedding import cohort_of_slides
from tests.conftest import TINY, Tiny

Mmap = Callable[..., "subprocess.CompletedProcess[str]"]


def picture_of(tiny: Tiny, slide: str) -> Path:
    (image,) = (tiny.her2st / "ST-imgs").rglob(f"*{slide}*.jpg")
    return image


def mpp_of(tiny: Tiny) -> float:
    return float(mm.FeatureStore(tiny.store)["B1"].source_mpp or 0)


def test_slides_that_the_head_was_trained_on_are_noted(tiny: Tiny, tmp_path: Path, mmap: Mmap) -> None:
    run = mm.load_head(tiny.run)
    trained, tested = run.card.slides.train[0], run.card.slides.test[0]
    said = f"the head was trained on {trained}: how well it predicts it says nothing about new slides"
    done = mmap("predict", tiny.run, tiny.store, "--out", tmp_path / "p", "--slides", f"{trained},{tested}")
    assert (done.returncode, said in " ".join(done.stderr.split())) == (0, True)
    with pytest.warns(MmapWarning, match=said):
        run.predict(tiny.store, trained, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MmapWarning)
        assert mm.predict(tiny.run, tiny.store, tmp_path / "q", slides=tested, progress=False).notes == ()


def test_a_cohort_is_embedded_and_predicted_as_by_two_commands(tiny: Tiny, tmp_path: Path) -> None:
    cohort = mm.read_cohort(f"her2st:{tiny.her2st}")
    run = mm.load_head(tiny.run)
    straight = mm.predict(run, cohort, tmp_path / "straight", slides=["B1"], progress=False)
    store = mm.embed(
        cohort.only(["B1"]), tmp_path / "s.zarr", encoder=run.encoder, mpp=run.mpps, progress=False
    )
    by_two = mm.predict(run, store, tmp_path / "two", cohort=cohort, progress=False)
    first, second = (anndata.read_h5ad(report.written["B1"]) for report in (straight, by_two))
    assert np.array_equal(first.X, second.X)
    assert np.array_equal(first.layers["measured"], second.layers["measured"])
    assert straight.scores == by_two.scores
    assert first.uns["mmap"]["scores"]["pcc"] == straight.scores["B1"].pcc
    assert 0 < straight.coverage["B1"] <= 1
    assert (tmp_path / "straight" / "features.zarr" / "zarr.json").is_file()
    # One command from slides to maps; of a store, the page is another command's.
    assert straight.page == tmp_path / "straight" / "report.html"
    assert "<h2>Maps</h2>" in straight.page.read_text("utf-8")
    assert by_two.page is None
    assert sorted(path.suffix for path in (tmp_path / "two").iterdir()) == [".h5ad"]

    again = mm.predict(run, cohort, tmp_path / "straight", slides=["B1"], progress=False)
    assert [report.windows for report in again.extractions] == [0]
    assert np.array_equal(anndata.read_h5ad(again.written["B1"]).X, first.X)


@pytest.mark.parametrize("as_folder", [False, True])
def test_an_image_gets_a_grid_at_the_pitch_of_training(tiny: Tiny, tmp_path: Path, as_folder: bool) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    image = Path(shutil.copy(picture_of(tiny, "B1"), folder / "biopsy.jpg"))
    report = mm.predict(
        tiny.run, folder if as_folder else image, tmp_path / "p", embeddings=tmp_path / "s.zarr",
        source_mpp=mpp_of(tiny), progress=False,
    )  # fmt: skip
    table = anndata.read_h5ad(report.written["biopsy"])
    assert spot_pitch(table.obsm["spatial"]) * mpp_of(tiny) == pytest.approx(200)  # as legacy ST's
    assert "measured" not in table.layers
    assert table.uns["spatial"]["biopsy"]["images"]["hires"].ndim == 3
    assert table.obs["array_row"].max() > 0
    assert not (tmp_path / "p" / "features.zarr").exists()
    assert mm.FeatureStore(tmp_path / "s.zarr").slides == ("biopsy",)


def test_the_page_is_left_out_or_asked_for(tiny: Tiny, tmp_path: Path, mmap: Mmap) -> None:
    shown = mmap("predict", tiny.run, tiny.store, "--slides", "B1", "--out", tmp_path / "p", "--page")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1].endswith("report.html")
    (tmp_path / "p" / "report.html").unlink()
    cohort = f"her2st:{tiny.her2st}"
    words = (cohort, "--slides", "B1", "--out", tmp_path / "p", "--store", tmp_path / "s.zarr")
    shown = mmap("predict", tiny.run, *words, "--no-page")
    assert shown.returncode == 0, shown.stderr
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["B1.h5ad"]


def test_predictions_are_there_where_the_page_cannot_be_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p" / "report.html").mkdir(parents=True)
    with pytest.warns(MmapWarning, match="no page is written"):
        report = mm.predict(tiny.run, tiny.store, tmp_path / "p", slides="B1", page=True, progress=False)
    assert report.written["B1"].is_file()
    assert report.page is None
    # Nobody asked for one of very many values.
    monkeypatch.setattr(run_page, "_MOST_READ", 10)
    cohort = f"her2st:{tiny.her2st}"
    report = mm.predict(
        tiny.run, cohort, tmp_path / "q", slides="B1", embeddings=tmp_path / "s.zarr", progress=False
    )
    assert report.page is None
    assert report.notes == ()


def test_another_grid(tiny: Tiny, tmp_path: Path, mmap: Mmap) -> None:
    words = ("--out", tmp_path / "p", "--source-mpp", mpp_of(tiny), "--spots", "hex:250")
    shown = mmap("predict", tiny.run, picture_of(tiny, "B1"), *words)
    assert shown.returncode == 0, shown.stderr
    (file,) = (tmp_path / "p").glob("*.h5ad")
    table = anndata.read_h5ad(file)
    assert spot_pitch(table.obsm["spatial"]) * mpp_of(tiny) == pytest.approx(250)
    # Neighbours in a row are two columns apart, as Space Ranger counts them.
    first = table.obs[table.obs["array_row"] == table.obs["array_row"].max()]["array_col"]
    assert set(np.diff(np.sort(first))) <= {2, 4, 6, 8, 10}


def test_heads_of_random_weights_and_of_several_encoders(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of random weights finds the same random weights again."""
    cohort = mm.read_cohort(f"her2st:{tiny.her2st}")
    store = shutil.copytree(tiny.store, tmp_path / "s.zarr")
    mm.embed(cohort, store, encoder=TINY, mpp=[0.5, 1.0], random_weights=True, progress=False)
    run = mm.fit_head(
        cohort, store, encoder=[TINY, "efficientnet-lite0"], head="ridge", settings={"alpha": 1e4},
        genes="mean:10", test={"patient": "B"}, out=tmp_path / "run", progress=False,
    )  # fmt: skip
    straight = mm.predict(run, cohort, tmp_path / "p", slides="B1", progress=False)
    assert len(straight.extractions) == 2
    predicted = run.predict(store, "B1", progress=False)
    assert np.allclose(anndata.read_h5ad(straight.written["B1"]).X, predicted.X, atol=2e-3)

    def build_all_but_one(spec: EncoderSpec, **options: Any) -> Any:
        if spec.name == "efficientnet-lite0":
            raise EncoderError("efficientnet-lite0: there are no weights.")
        return build_encoder(spec, **options)

    monkeypatch.setattr(encoder_request, "build_encoder", build_all_but_one)
    with pytest.raises(EncoderError, match="there are no weights"):
        mm.predict(run, cohort, tmp_path / "q", slides="B1", progress=False)
    assert not (tmp_path / "q").exists()  # nothing is embedded with the other one first


def test_other_weights_are_refused_before_any_image_is_opened(tiny: Tiny, tmp_path: Path) -> None:
    other = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(RecipeMismatchError, match=r"not what the head was trained with \(weights_sha256: "):
        mm.predict(
            tiny.run, f"her2st:{tiny.her2st}", tmp_path / "p", weights=tmp_path / "other.pth", progress=False
        )
    assert not (tmp_path / "p" / "features.zarr").exists()


def test_an_encoder_that_is_built_otherwise_today_is_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = replace(
        families.ENCODERS["efficientnet-lite0"],
        preprocessing=replace(families.ENCODERS["efficientnet-lite0"].preprocessing, mean=(0.1, 0.2, 0.3)),
    )
    monkeypatch.setitem(families.ENCODERS, "efficientnet-lite0", changed)
    with pytest.raises(RequestError, match=r"not the encoder that the head was trained with \(preprocessing"):
        mm.predict(tiny.run, f"her2st:{tiny.her2st}", tmp_path / "p", progress=False)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.svs", "not a feature store, a slide, a folder of slides or a cohort: it does not exist"),
        ("empty", "holds no image"),
        ("notes.txt", "does not have the name of an image"),
        ("group.zarr", "not a feature store|of another kind"),
        ("her2st:nowhere", "does not exist"),
    ],
)
def test_what_is_neither_slides_nor_a_store(
    source: str, said: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mmap: Mmap
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").touch()
    zarr.open_group("group.zarr", mode="w")
    with pytest.raises(RequestError, match=said):
        mm.predict(tiny.run, source, "p", progress=False)
    assert not Path("p").exists()
    assert mmap("predict", tiny.run, source, "--out", "p").returncode == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--store", "s.zarr"),
        ("--spots", "grid:100"),
        ("--weights", "w.pth"),
        ("--device", "cpu"),
        ("--enlarge",),
    ],
    ids=lambda words: words[0],
)
def test_options_of_embedding_are_refused_for_a_store(
    words: tuple[str, ...], tiny: Tiny, tmp_path: Path, mmap: Mmap
) -> None:
    shown = mmap("predict", tiny.run, tiny.store, "--out", tmp_path / "p", *words)
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"error: {words[0]}: ")


def test_predictions_of_another_head_are_seen_before_anything_is_embedded(tiny: Tiny, tmp_path: Path) -> None:
    cohort = f"her2st:{tiny.her2st}"
    other = mm.fit_head(
        cohort, tiny.store, encoder="efficientnet-lite0", head="mean", genes="mean:5", test={"patient": "B"},
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    mm.predict(other, tiny.store, tmp_path / "p", slides=["B1"], progress=False)
    with pytest.raises(RequestError, match="predictions that this head did not make"):
        mm.predict(tiny.run, cohort, tmp_path / "p", progress=False)
    assert not (tmp_path / "p" / "features.zarr").exists()


def test_slides_that_cannot_be_embedded_do_not_stop_the_others(
    tiny: Tiny, tmp_path: Path, mmap: Mmap
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(picture_of(tiny, "B1"), folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes(picture_of(tiny, "A1").read_bytes()[:2000])
    with pytest.warns(SlidesLeftOutWarning, match="cut"):
        report = mm.predict(tiny.run, folder, tmp_path / "p", source_mpp=mpp_of(tiny), progress=False)
    assert list(report.written) == ["whole"]
    assert list(report.failed) == ["cut"]

    shown = mmap("predict", tiny.run, folder / "cut.jpg", "--out", tmp_path / "q", "--source-mpp", 0.5)
    assert shown.returncode == 1
    assert "cut" in shown.stdout
    with pytest.raises(SlidesFailedError, match="as --source-mpp"):
        mm.predict(tiny.run, folder / "whole.jpg", tmp_path / "r", progress=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "{tmp}/p", "--store", "{tmp}/p"), "is --out, the folder of the predictions"),
        (("--out", "{tmp}/p", "--store", "{tmp}/q/../p"), "is --out, the folder of the predictions"),
        (("--out", "{store}"), "is a feature store; name another folder"),
        (
            ("--out", "{tmp}/p", "--encoder", "uni"),
            "--encoder uni: the head was trained on efficientnet-lite0",
        ),
    ],
)
def test_what_would_mix_or_be_ignored_is_refused(
    words: tuple[str, ...], said: str, tiny: Tiny, tmp_path: Path, mmap: Mmap
) -> None:
    given = [word.format(tmp=tmp_path, store=tiny.store) for word in words]
    before = sorted(tiny.store.iterdir())
    shown = mmap("predict", tiny.run, picture_of(tiny, "B1"), "--source-mpp", mpp_of(tiny), *given)
    assert shown.returncode == 2
    assert said in shown.stderr
    assert not list(tmp_path.iterdir())
    assert sorted(tiny.store.iterdir()) == before


@pytest.mark.parametrize("mpp", [float("nan"), -1.0, 0.0, 1e6])
def test_numbers_that_are_no_scale(mpp: float, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="give micrometres per pixel from"):
        mm.predict(tiny.run, picture_of(tiny, "B1"), tmp_path / "p", source_mpp=mpp, progress=False)


def test_a_feature_store_holds_no_predictions_of_itself(tiny: Tiny, mmap: Mmap) -> None:
    shown = mmap("predict", tiny.run, tiny.store, "--out", tiny.store)
    assert shown.returncode == 2
    assert "is a feature store; name another folder" in shown.stderr
    assert not list(tiny.store.glob("*.h5ad"))


def test_counts_without_spots_do_not_stop_a_slide_that_gets_a_grid(tiny: Tiny, tmp_path: Path) -> None:
    row = mm.read_cohort(f"her2st:{tiny.her2st}")["B1"]
    bare = Cohort((replace(row, spots=None, mpp=mpp_of(tiny)),), "mine")
    report = mm.predict(tiny.run, bare, tmp_path / "p", progress=False)
    assert list(report.written) == ["B1"]
    assert not report.scores
    assert "measured" not in anndata.read_h5ad(report.written["B1"]).layers


@pytest.mark.parametrize(
    ("stated", "kept"), [(None, None), (1.02, 1.02), (1.3, 1.3), (1.004, 1.004), (5000.0, None)]
)
def test_slides_that_state_their_scale_keep_it(
    stated: float | None, kept: float | None, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Within 5%, too, and beyond: others in the folder do not state it, and an implausible one is none."""
    given = mpp_of(tiny)
    per_cm = None if stated is None else 1e4 / (given * stated)
    image = tmp_path / "biopsy.tif"
    with Image.open(picture_of(tiny, "B1")) as picture:
        picture.save(image, **({} if per_cm is None else {"resolution_unit": 3, "resolution": per_cm}))
    report = mm.predict(tiny.run, image, tmp_path / "p", source_mpp=given, progress=False)
    found = mm.FeatureStore(tmp_path / "p" / "features.zarr")["biopsy"].source_mpp
    assert list(report.written) == ["biopsy"]
    assert found == pytest.approx(given * (kept or 1.0), rel=2e-3)
    assert ("biopsy keeps its um/px" in caplog.text) == (kept is not None and kept > 1.01)


def test_an_ome_zarr_is_a_slide_and_a_feature_store_is_not(tiny: Tiny, tmp_path: Path) -> None:
    assert cohort_of_slides(tiny.store) is None
    assert cohort_of_slides(mm.FeatureStore(tiny.store)) is None
    group = zarr.open_group(tmp_path / "slide.ome.zarr", mode="w", zarr_format=2)
    group.attrs["multiscales"] = [{"version": "0.4", "axes": [], "datasets": []}]
    found = cohort_of_slides(tmp_path / "slide.ome.zarr")
    assert isinstance(found, Cohort)
    assert found.names == ("slide",)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    found = cohort_of_slides(tmp_path)
    assert isinstance(found, Cohort)
    assert found.names == ("a", "slide")
