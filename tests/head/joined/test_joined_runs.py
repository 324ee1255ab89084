"""Several encoders of a store in one head, as the commands fit, evaluate, compare and apply it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mmap_st as mm
from mmap_st.data.cohort import Cohort
from mmap_st.errors import HeadError, RequestError, SlidesLeftOutWarning
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.files import sha256_of_json
from mmap_st.head.dataset import encoders_of
from mmap_st.head.evaluation.ablations import evaluate
from mmap_st.head.evaluation.folder import EvaluateRequest
from mmap_st.head.runs import head_card
from mmap_st.head.runs.fit import FitReport, fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import FitRequest, fit_request
from mmap_st.head.runs.saved_head import count_parameters, read_card, read_head
from mmap_st.report import draw_run
from tests.conftest import Tiny
from tests.head.joined.conftest import BOTH, COMMA, ENCODER, NARROW, OTHER, PARTIAL


def request(encoder: str = BOTH, head: str = "ridge", *pairs: str, **changes) -> FitRequest:
    made = fit_request(encoder, head, pairs=pairs, genes="mean:10", test="slide=C1", baselines=False)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def joined(cohort: Cohort, store: FeatureStore, tmp_path_factory) -> tuple[Path, FitReport]:
    out = tmp_path_factory.mktemp("joined") / "run"
    return out, fit_head(cohort, store, request(baselines=True), out)


def test_the_run_says_what_it_is_of(joined, cohort: Cohort, store: FeatureStore) -> None:
    out, report = joined
    card = json.loads((out / "head.json").read_text())
    assert card["format_version"] == 2
    assert card["encoder"] == {"encoder": {"name": BOTH}}
    assert [member["encoder"]["encoder"]["name"] for member in card["members"]] == [ENCODER, OTHER]
    assert [member["shape"]["width"] for member in card["members"]] == [1280, 24]
    assert card["shape"] == {"magnifications": 2, "width": 1304, "genes": 10}
    weights = card["chosen"]["weights"]
    assert list(weights) == [ENCODER, OTHER]
    assert sum(weights.values()) == pytest.approx(1)
    assert card["chosen"]["weights_chosen"] == "inner folds by slide"
    assert report.metrics.protocol.chosen == card["chosen"]
    assert report.metrics.baseline_ridge.pcc_slide == pytest.approx(report.metrics.test.pcc_slide)
    assert report.metrics.prediction_intervals is not None
    assert report.metrics.gene_trust is not None
    saved = read_head(out)
    assert saved.encoder == BOTH
    assert saved.encoders == (ENCODER, OTHER)
    assert count_parameters(out) == 2 * (1280 + 24) * 10 + 2 * 10 + 2


def test_it_predicts_the_weighted_mean_of_a_run_of_each(
    joined, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    out, _ = joined
    weights = read_card(out).chosen["weights"]
    expected = 0.0
    for encoder, weight in weights.items():
        fit_head(cohort, store, request(encoder), tmp_path / encoder)
        alone = read_prediction(tmp_path / encoder / "predictions" / "C1.h5ad")
        expected = expected + weight * np.asarray(alone.X)
    table = read_prediction(out / "predictions" / "C1.h5ad")
    np.testing.assert_allclose(table.X, expected, atol=1e-6)
    assert table.uns["mmap"]["encoder"] == BOTH
    assert {"distance", "tissue"} <= set(table.obs)
    assert {"interval_90", "trusted"} <= set(table.var)


def test_it_is_applied_to_the_bit_as_it_was_fitted(joined, store: FeatureStore, tmp_path: Path) -> None:
    out, _ = joined
    report = predict_slides(out, store, tmp_path / "predicted")
    assert list(report.written) == list(store.slides)
    again, first = (read_prediction(p) for p in (report.written["C1"], out / "predictions" / "C1.h5ad"))
    assert np.array_equal(again.X, first.X)
    assert np.array_equal(again.layers["spread"], first.layers["spread"])
    assert np.array_equal(again.obs["distance"], first.obs["distance"])
    assert again.uns["mmap"]["domain"]["verdict"] == first.uns["mmap"]["domain"]["verdict"]


def test_mmap_has_prototypes_of_every_encoder(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    out = tmp_path / "run"
    three = f"{ENCODER},{OTHER},{PARTIAL}"
    report = fit_head(cohort, store, request(three, "mmap", "blend=0"), out)
    weights = report.metrics.protocol.chosen["weights"]
    assert len(weights) == 3
    assert sum(weights.values()) == pytest.approx(1)
    drawn = draw_run(out, tmp_path / "figures", store=store)
    assert [path.name for path in drawn.written] == [
        "C1_maps.png", *(f"C1_{encoder}_prototypes.png" for encoder in weights)
    ]  # fmt: skip
    report = predict_slides(out, store, tmp_path / "predicted", ["C1"])
    again, first = (read_prediction(p) for p in (report.written["C1"], out / "predictions" / "C1.h5ad"))
    assert np.array_equal(again.X, first.X)


def test_a_slide_that_lacks_one_is_skipped_by_name(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    report = fit_head(cohort, store, request(f"{ENCODER},{PARTIAL}", test="slide=A1"), out)
    assert report.skipped == {"B1": f"{PARTIAL} is not complete on it"}
    assert report.metrics.protocol.train == ("C1",)
    assert report.metrics.protocol.invalid_spots == {"A1": 2}
    table = read_prediction(out / "predictions" / "A1.h5ad")
    assert np.flatnonzero(np.isnan(table.X).any(axis=1)).tolist() == [3, 8]
    assert np.flatnonzero(~table.obs["valid"]).tolist() == [3, 8]
    predicted = predict_slides(out, store, tmp_path / "predicted")
    assert predicted.skipped == {"B1": f"{PARTIAL} is not complete at 0.5000, 1.0000 um/px"}
    assert list(predicted.written) == ["A1", "C1"]


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        (f"{ENCODER},{ENCODER}", "name each encoder once"),
        (f"{OTHER},{ENCODER}, {OTHER}", "name each encoder once"),
        (f"{ENCODER},", "a name is empty"),
        (f",{ENCODER}", "a name is empty"),
        (",", "a name is empty"),
        (f"{ENCODER},,{OTHER}", "a name is empty"),
        (f"{ENCODER},othre", "no embeddings of 'othre' .did you mean other"),
        (f"nosuch,{ENCODER}", "no embeddings of 'nosuch'"),
    ],
)
def test_names_that_cannot_be_are_refused(
    encoder: str, says: str, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(RequestError, match=says):
        fit_head(cohort, store, request(encoder), out)
    with pytest.raises(RequestError, match=says):
        evaluate(cohort, store, EvaluateRequest(request(encoder)), out)
    assert not out.exists()


def test_magnifications_are_those_of_all(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    fit_head(cohort, store, request(f"{ENCODER},{NARROW}"), tmp_path / "run")
    assert read_card(tmp_path / "run").magnifications == (0.5,)
    fit_head(cohort, store, request(BOTH, mpps=(1.0,)), tmp_path / "coarse")
    assert read_card(tmp_path / "coarse").magnifications == (1.0,)
    with pytest.raises(RequestError, match=f"{NARROW} is not complete on it at 1.0000"):
        fit_head(cohort, store, request(f"{ENCODER},{NARROW}", mpps=(1.0,)), tmp_path / "none")


def test_names_are_as_given(store: FeatureStore) -> None:
    assert encoders_of(ENCODER, store) == (ENCODER,)
    assert encoders_of(f" {OTHER} , {ENCODER}", store) == (OTHER, ENCODER)
    assert encoders_of(COMMA, store) == (COMMA,)  # one encoder, if the store has it
    assert encoders_of("nosuch", store) == ("nosuch",)


@pytest.mark.parametrize("encoder", [COMMA, [ENCODER, OTHER], (ENCODER, encoder_spec("uni")), BOTH])
def test_python_takes_a_list(encoder, cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    names = (
        ",".join(one if isinstance(one, str) else one.name for one in encoder)
        if isinstance(encoder, list | tuple)
        else encoder
    )
    options = {"head": "ridge", "genes": "mean:10", "test": {"slide": "C1"}, "progress": False}
    if "uni" in names:
        with pytest.raises(RequestError, match="no embeddings of 'uni'"):
            mm.fit_head(cohort, store, encoder=encoder, out=tmp_path / "run", **options)
        return
    run = mm.fit_head(cohort, store, encoder=encoder, out=tmp_path / "run", **options)
    assert run.encoder == names
    assert f"ridge on {names}" in repr(run)
    assert mm.load_head(run.path).predict(store, "C1", progress=False).n_vars == 10


def test_a_list_of_nothing_is_refused(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--encoder names nothing"):
        mm.fit_head(cohort, store, encoder=[], out=tmp_path / "run", progress=False)


def test_a_version_that_knows_nothing_of_it_refuses(joined, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = joined
    monkeypatch.setattr(head_card, "_FORMAT_VERSIONS", (1,))
    with pytest.raises(HeadError, match="has format version 2; this program reads 1"):
        read_head(out)


Edit = Callable[[dict], object]
DAMAGE: dict[str, Edit] = {
    "of the other format": lambda card: card.update(format_version=1),
    "one member": lambda card: card["members"].pop(),
    "no members": lambda card: card.pop("members"),
    "others' names": lambda card: card["encoder"]["encoder"].update(name=f"{OTHER},{ENCODER}"),
    "members in another order": lambda card: card["members"].reverse(),
    "no name": lambda card: card["members"][1].update(encoder={}),
    "another width": lambda card: card["members"][1]["shape"].update(width=0),
    "other genes": lambda card: card["members"][0]["shape"].update(genes=3),
    "a narrower member": lambda card: card["members"][1]["shape"].update(width=12),
}


@pytest.mark.parametrize("edit", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_card_is_refused(edit: Edit, joined, tmp_path: Path) -> None:
    shutil.copytree(joined[0], tmp_path / "run")
    file = tmp_path / "run" / "head.json"
    card = json.loads(file.read_text())
    edit(card)
    about = (head_card.SHA256, "format_version", "package_version", "head", "head_code_sha256")
    card[head_card.SHA256] = sha256_of_json({key: card[key] for key in card if key not in about})
    file.write_text(json.dumps(card))
    with pytest.raises(HeadError, match="is damaged and cannot be loaded"):
        read_head(tmp_path / "run")


def test_commands(mmap, cohort: Cohort, tiny: Tiny, store: FeatureStore, tmp_path: Path) -> None:
    cohort_word = f"her2st:{tiny.her2st}"
    common = ("--genes", "mean:10", "--out")
    fit = ("fit-head", cohort_word, store.path, "--head", "ridge", "--test", "slide=A1")
    done = mmap(*fit, "--encoder", f"{ENCODER},{PARTIAL}", *common, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "B1" in done.stdout + done.stderr
    assert f"{PARTIAL} is not complete on it" in " ".join((done.stdout + done.stderr).split())
    done = mmap("predict", tmp_path / "run", store.path, "--out", tmp_path / "predicted")
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in (tmp_path / "predicted").glob("*.h5ad")) == ["A1", "C1"]
    done = mmap(*fit, "--encoder", f"{ENCODER},{ENCODER}", *common, tmp_path / "none")
    assert done.returncode == 2
    assert "name each encoder once" in done.stderr


def test_left_out_slides_are_warned_of(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    with pytest.warns(SlidesLeftOutWarning, match=f"{PARTIAL} is not complete on it"):
        mm.fit_head(
            cohort, store, encoder=[ENCODER, PARTIAL], head="mean", genes="mean:10", test={"slide": "C1"},
            out=tmp_path / "run", progress=False,
        )  # fmt: skip
