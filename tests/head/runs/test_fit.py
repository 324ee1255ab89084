"""Fitting, scoring and predicting from a store, as the commands do it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort, read_counts
from mmap_st.errors import HeadError, NormalisationError, PanelError, RequestError, SplitError, StoreError
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.interface import parse_settings
from mmap_st.head.joined.joined_head import fit_joined
from mmap_st.head.registry import head_method
from mmap_st.head.runs import fit
from mmap_st.head.runs.fit import FitReport, fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import FitRequest, evaluation_protocol
from mmap_st.head.runs.saved_head import read_head
from mmap_st.head.scoring.metrics import score_slides

ENCODER = "efficientnet-lite0"
FAST = ("epochs=4", "width=16")


def request(head: str = "ridge", *pairs: str, **changes) -> FitRequest:
    method = head_method(head)
    made = FitRequest(ENCODER, method, parse_settings(method, pairs), genes="all", test="patient=E")
    return replace(made, **changes)


@pytest.fixture(scope="module")
def fitted(cohort: Cohort, store: FeatureStore, tmp_path_factory) -> tuple[Path, FitReport]:
    out = tmp_path_factory.mktemp("runs") / "mmap"
    return out, fit_head(cohort, store, request("mmap", "epochs=15", "width=32"), out)


def test_a_run_holds_what_the_design_says(fitted) -> None:
    out, _ = fitted
    assert {p.name for p in out.iterdir()} == {
        "head.safetensors", "head.json", "metrics.json", "history.csv", "genes.csv", "predictions",
        "README.md", "card.json",
    }  # fmt: skip
    card = json.loads((out / "head.json").read_text())
    assert card["format_version"] == 1
    assert card["head"] == "mmap"
    assert card["settings"]["width"] == 32
    assert card["magnifications"] == [0.5, 1.0]
    assert card["encoder"]["encoder"]["name"] == ENCODER
    assert card["slides"] == {"train": ["A1", "B1", "C1", "D1"], "val": [], "test": ["E1"]}
    assert len(card["panel"]["genes"]) == 32
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["protocol"]["validation"] == "inner folds by patient"
    assert metrics["protocol"]["shared_patients"] == []
    assert metrics["seconds"].keys() == {"prototypes", "fit", "predict", "calibrate"}
    for key in ("test", "baseline_mean", "baseline_ridge"):
        assert metrics[key].keys() == {
            "slides", "pcc_slide", "pcc_slide_hvg50", "pcc_pooled", "mse", "mae", "pcc_of_ceiling",
        }  # fmt: skip
    assert metrics["baseline_mean"]["slides"]["E1"]["undefined_genes"] == 32
    assert metrics["baseline_mean"]["pcc_slide"] == 0
    history = pl.read_csv(out / "history.csv")
    assert history["epoch"].to_list() == list(range(16))  # 0: before any training


def test_heads_learn_something_of_simulated_tissue(fitted) -> None:
    _, report = fitted
    metrics = report.metrics
    assert metrics.test.pcc_slide > 0.15
    assert metrics.baseline_ridge.pcc_slide > 0.15
    assert metrics.test.mse < metrics.baseline_mean.mse


def test_the_prediction_file_and_the_metrics_agree(fitted, cohort: Cohort, store: FeatureStore) -> None:
    out, report = fitted
    table = read_prediction(out / "predictions" / "E1.h5ad")
    card = json.loads((out / "head.json").read_text())
    assert list(table.var_names) == card["panel"]["genes"]
    assert tuple(table.obs_names) == store.slide("E1").spot_ids()
    assert np.array_equal(table.obsm["spatial"], store.slide("E1").spot_xy())
    assert table.uns["mmap"]["units"] == "log1p of counts scaled to 10,000 a spot over all genes"
    assert table.X.dtype == np.float32
    counts = read_counts(cohort["E1"]).rows_of(list(table.obs_names))
    dense = counts.matrix.toarray()
    expected = np.log1p(dense / dense.sum(1, keepdims=True) * 1e4)
    np.testing.assert_allclose(
        table.layers["measured"], expected[:, [counts.genes.index(g) for g in table.var_names]], rtol=1e-5
    )
    again = score_slides({"E1": table.X}, {"E1": table.layers["measured"]}, hvg50=[0])
    assert again.pcc_slide == pytest.approx(report.metrics.test.pcc_slide)
    assert again.mse == pytest.approx(report.metrics.test.mse)
    genes = pl.read_csv(out / "genes.csv")
    assert genes["gene"].to_list() == list(table.var_names)
    assert genes["pcc"].mean() == pytest.approx(report.metrics.test.pcc_slide)
    assert genes["mse"].mean() == pytest.approx(report.metrics.test.mse)
    assert genes["ridge_pcc"].mean() == pytest.approx(report.metrics.baseline_ridge.pcc_slide)
    assert genes["slides"].to_list() == [1] * len(genes)
    ceiling = report.metrics.noise_ceiling
    assert genes["ceiling"].mean() == pytest.approx(ceiling.pcc_slide)
    assert genes["pcc"].mean() < ceiling.pcc_slide == ceiling.slides["E1"].pcc < 1
    assert report.metrics.test.pcc_of_ceiling == pytest.approx(genes["pcc"].mean() / genes["ceiling"].mean())


def test_a_head_that_is_a_baseline_is_not_fitted_again_as_one(
    cohort: Cohort, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[str] = []

    def counted(method, *others):
        fits.append(method.name)
        return fit_joined(method, *others)

    monkeypatch.setattr(fit, "fit_joined", counted)
    by_ridge, by_mean, stronger = (
        fit_head(cohort, store, request(*words), tmp_path / str(number)).metrics
        for number, words in enumerate([("ridge",), ("mean",), ("ridge", "alpha=1e6")])
    )
    assert fits == ["ridge", "mean", "mean", "ridge", "ridge", "mean", "ridge"]
    assert by_ridge.test == by_ridge.baseline_ridge == by_mean.baseline_ridge == stronger.baseline_ridge
    assert by_mean.test == by_mean.baseline_mean == by_ridge.baseline_mean
    assert stronger.test != stronger.baseline_ridge


def test_predict_gives_the_same_numbers_and_needs_no_counts(
    fitted, store: FeatureStore, tmp_path: Path
) -> None:
    out, _ = fitted
    report = predict_slides(out, store, tmp_path / "predicted", ["E1", "A1"])
    assert sorted(p.name for p in (tmp_path / "predicted").iterdir()) == ["A1.h5ad", "E1.h5ad"]
    ours, first = (read_prediction(p) for p in (report.written["E1"], out / "predictions" / "E1.h5ad"))
    np.testing.assert_array_equal(ours.X, first.X)
    assert "measured" not in ours.layers
    with pytest.raises(RequestError, match="has no slide Q1"):
        predict_slides(out, store, tmp_path, ["Q1"])


def test_a_head_refuses_embeddings_of_other_weights(fitted, store: FeatureStore, tmp_path: Path) -> None:
    import shutil

    out, _ = fitted
    run = tmp_path / "run"
    shutil.copytree(out, run)
    card = json.loads((run / "head.json").read_text())
    card.pop("sha256")  # as runs of earlier versions are
    card["encoder"]["weights_sha256"] = "0" * 64
    (run / "head.json").write_text(json.dumps(card))
    report = predict_slides(run, store, tmp_path / "out", ["E1"])
    assert "weights_sha256" in report.failed["E1"]
    card["magnifications"] = [0.25, 2.0]
    (run / "head.json").write_text(json.dumps(card))
    with pytest.raises(RequestError, match=r"no slide of .* has what the head needs"):
        predict_slides(run, store, tmp_path / "out")


def test_damaged_and_foreign_runs_are_one_sentence(fitted, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="is not a run"):
        read_head(tmp_path)
    import shutil

    out, _ = fitted
    for name, content, part in (
        ("head.json", "{", "damaged"),
        ("head.safetensors", "junk", "damaged"),
        ("head.json", '{"format_version": 9}', "format version 9"),
    ):
        run = tmp_path / f"{name}{part}"
        shutil.copytree(out, run)
        (run / name).write_text(content)
        with pytest.raises(HeadError, match=part):
            read_head(run)


def edit_counts(root: Path, target: Path, name: str, edit) -> Cohort:
    """A copy of the simulated counts with one section's table changed."""
    import gzip
    import shutil

    shutil.copytree(root, target, ignore=shutil.ignore_patterns("*.jpg"))
    file = target / "ST-cnts" / f"{name}.tsv.gz"
    rows = [line.split("\t") for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    rows = edit(rows)
    file.write_bytes(gzip.compress("\n".join("\t".join(row) for row in rows).encode() + b"\n"))
    return open_cohort(f"her2st:{target}")


def first_spot_empty(rows):
    """Rows of a count table whose first spot has no transcript at all."""
    return [rows[0], [rows[1][0], *["0"] * (len(rows[1]) - 1)], *rows[2:]]


def test_a_gene_that_a_test_slide_lacks_is_left_out_of_its_metrics(
    simulated: Path, store: FeatureStore, tmp_path: Path
) -> None:
    cohort = edit_counts(
        simulated, tmp_path / "her2st", "E1", lambda rows: [row[:3] + row[4:] for row in rows]
    )
    panel = tmp_path / "panel.txt"
    genes = read_counts(cohort["A1"]).genes
    panel.write_text("\n".join(genes[:6]))
    report = fit_head(cohort, store, request(genes=str(panel)), tmp_path / "run")
    table = read_prediction(tmp_path / "run" / "predictions" / "E1.h5ad")
    lacking = [gene for gene in genes[:6] if np.isnan(table[:, gene].layers["measured"]).all()]
    assert lacking == [genes[2]]
    assert np.isfinite(table.X).all()
    kept = [i for i in range(6) if i != 2]
    by_hand = score_slides(
        {"E1": table.X[:, kept]}, {"E1": table.layers["measured"][:, kept]}, hvg50=range(5)
    )
    expected = replace(by_hand.slides["E1"], patient="E")
    assert vars(report.metrics.test.slides["E1"]) == pytest.approx(vars(expected))


@pytest.mark.parametrize("head", ["ridge", "mmap"])
def test_a_gene_that_a_training_slide_lacks_is_masked(
    simulated: Path, store: FeatureStore, tmp_path: Path, head: str
) -> None:
    cohort = edit_counts(
        simulated, tmp_path / "her2st", "A1", lambda rows: [row[:3] + row[4:] for row in rows]
    )
    panel = tmp_path / "panel.txt"
    genes = read_counts(cohort["B1"]).genes
    panel.write_text("\n".join(genes[:6]))
    pairs = FAST if head == "mmap" else ()
    fit_head(cohort, store, request(head, *pairs, genes=str(panel)), tmp_path / "run")
    table = read_prediction(tmp_path / "run" / "predictions" / "E1.h5ad")
    assert np.isfinite(table.X).all()
    measured = np.asarray(table.layers["measured"])[:, 2].mean()
    assert abs(table.X[:, 2].mean() - measured) < 1.0  # zeros for the missing slide would pull it down


def test_spots_without_a_library_are_left_out_and_counted(
    simulated: Path, store: FeatureStore, tmp_path: Path
) -> None:
    cohort = edit_counts(simulated, tmp_path / "her2st", "E1", first_spot_empty)
    report = fit_head(cohort, store, request(), tmp_path / "run")
    slide = report.metrics.test.slides["E1"]
    assert slide.n_spots == len(store.slide("E1").spot_ids()) - 1
    assert report.metrics.protocol.spots_without_target == {"E1": 1}


@pytest.mark.parametrize(
    ("value", "part"), [("-3", "are negative"), ("nan", "missing or not numbers"), ("0.5", "not whole")]
)
def test_a_slide_with_bad_counts_fails_and_the_others_are_used(
    simulated: Path, store: FeatureStore, tmp_path: Path, value: str, part: str
) -> None:
    def spoil(rows):
        return [rows[0], [rows[1][0], value, *rows[1][2:]], *rows[2:]]

    cohort = edit_counts(simulated, tmp_path / "her2st", "B1", spoil)
    report = fit_head(cohort, store, request(), tmp_path / "run")
    assert part in report.failed["B1"]
    assert report.metrics.protocol.train == ("A1", "C1", "D1")
    with pytest.raises(SplitError, match=rf"no slide of --test can be used \(slide B1: .*{part}"):
        fit_head(cohort, store, request(test="slide=B1"), tmp_path / "other")


def test_slides_that_are_not_in_the_store_are_skipped(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    from mmap_st.data.cohort import CohortSlide

    more = Cohort((*cohort.slides, CohortSlide("Z1", "Z"), replace(cohort["A1"], slide="Y1")), "more")
    report = fit_head(more, store, request(), tmp_path / "run")
    assert report.skipped == {
        "Z1": "the cohort names no counts for it", "Y1": "it is not in the store",
    }  # fmt: skip


def test_validation_slides_and_runs_without_a_test(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    report = fit_head(cohort, store, request(validation="slide=D1", test=None), tmp_path / "run")
    assert report.metrics.protocol.validation == "validation slides"
    assert report.metrics.test is None
    assert list((tmp_path / "run" / "predictions").iterdir()) == []


def test_naming_slides_of_one_patient_warns(simulated: Path, store: FeatureStore, tmp_path: Path) -> None:
    found = open_cohort(f"her2st:{simulated}")
    cohort = Cohort(tuple(replace(s, patient="P") for s in found.slides), "one patient")
    report = fit_head(cohort, store, request(test="slide=E1"), tmp_path / "run")
    assert report.metrics.protocol.shared_patients == ("P",)
    assert report.metrics.protocol.validation == "inner folds by slide"
    assert "patients P" in report.warnings[0]


@pytest.mark.parametrize("head", ["mmap", "ridge"])
def test_nothing_of_a_test_slides_counts_reaches_the_head(
    simulated: Path, store: FeatureStore, tmp_path: Path, head: str
) -> None:
    """Not the panel, not a scale, not a choice, not a prediction: the files are the same to the bit."""

    def turned(rows):
        return [rows[0], *[[r[0], *[str(97 - int(v) % 7) for v in r[1:]][::-1]] for r in rows[1:]]]

    cohorts = (open_cohort(f"her2st:{simulated}"), edit_counts(simulated, tmp_path / "her2st", "E1", turned))
    pairs = ("epochs=2", "width=16") if head == "mmap" else ()
    outs = []
    for number, cohort in enumerate(cohorts):
        outs.append(tmp_path / f"run{number}")
        fit_head(cohort, store, request(head, *pairs, genes="svg:12"), outs[-1])
    for name in ("head.safetensors", "history.csv"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name
    first, second = (json.loads((out / "head.json").read_text()) for out in outs)
    assert first == second
    tables = [read_prediction(out / "predictions" / "E1.h5ad") for out in outs]
    np.testing.assert_array_equal(tables[0].X, tables[1].X)
    assert not np.array_equal(tables[0].layers["measured"], tables[1].layers["measured"])


def test_the_legacy_protocol_scales_to_the_panel_and_folds_by_slide(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    panel = tmp_path / "panel.txt"
    genes = read_counts(cohort["A1"]).genes[:6]
    panel.write_text("\n".join(genes))
    legacy = evaluation_protocol("legacy-mmap")
    # E1 of patient A, who is in training too: that is what the protocol is for.
    shared = tuple(replace(s, patient="A") if s.slide == "E1" else s for s in cohort.slides)
    asked = request(genes=str(panel), protocol=legacy, test="slide=E1")
    report = fit_head(replace(cohort, slides=shared), store, asked, tmp_path / "run")
    table = read_prediction(tmp_path / "run" / "predictions" / "E1.h5ad")
    counts = read_counts(cohort["E1"]).rows_of(list(table.obs_names)).columns_of(genes)[0].toarray()
    expected = np.log10(counts / counts.sum(1, keepdims=True) * 1e4 + 1)
    np.testing.assert_allclose(table.layers["measured"], expected, rtol=1e-5)
    assert table.uns["mmap"]["units"].startswith("log10(x + 1)")
    metrics = report.metrics
    assert metrics.protocol.name == "legacy-mmap"
    assert metrics.protocol.validation == "inner folds by slide"
    assert metrics.protocol.normalisation == "log10-10k-panel"
    assert metrics.test.mse_pooled == pytest.approx(((table.X - expected) ** 2).mean(), rel=1e-4)
    assert metrics.baseline_mean.mse_zscored == pytest.approx(1.0)
    with pytest.raises(SplitError, match="has no slide F1, G2, H1"):
        fit_head(cohort, store, request(test=None, protocol=legacy), tmp_path / "other")
    with pytest.raises(RequestError, match="did you mean legacy-mmap"):
        evaluation_protocol("legacy-map")


def test_the_legacy_protocol_gives_an_empty_library_zeros(
    simulated: Path, store: FeatureStore, tmp_path: Path
) -> None:
    cohort = edit_counts(simulated, tmp_path / "her2st", "E1", first_spot_empty)
    legacy = evaluation_protocol("legacy-mmap")
    report = fit_head(cohort, store, request(protocol=legacy), tmp_path / "run")
    assert report.metrics.test.slides["E1"].n_spots == len(store.slide("E1").spot_ids())
    assert report.metrics.protocol.spots_without_target == {}


def test_the_legacy_protocol_needs_counts(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    lognorm = Cohort(tuple(replace(s, values="lognorm") for s in cohort.slides), "lognorm")
    with pytest.raises(NormalisationError, match="legacy-mmap needs counts"):
        fit_head(lognorm, store, request(protocol=evaluation_protocol("legacy-mmap")), tmp_path / "run")


@pytest.mark.parametrize("kind", ["none", "random", "learned"])
def test_other_prototypes_fit_and_predict(
    cohort: Cohort, store: FeatureStore, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "run"
    fit_head(cohort, store, request("mmap", *FAST, f"prototypes={kind}", "selected=5"), out)
    report = predict_slides(out, store, tmp_path / "out", ["E1"])
    first = read_prediction(out / "predictions" / "E1.h5ad")
    np.testing.assert_array_equal(read_prediction(report.written["E1"]).X, first.X)


def test_a_run_is_replaced_whole_and_other_folders_never(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for alpha in ("alpha=1e3", "alpha=1e6"):
        fit_head(cohort, store, request("ridge", alpha), out, overwrite=True)
    assert json.loads((out / "head.json").read_text())["settings"]["alpha"] == 1e6
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    with pytest.raises(RequestError, match="other things than a run"):
        fit_head(cohort, store, request(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="is a file"):
        fit_head(cohort, store, request(), tmp_path / "file")


def test_requests_that_cannot_be_met(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(HeadError, match="did you mean ridge"):
        head_method("rigde")
    with pytest.raises(StoreError, match=r"no embeddings of 'resnet50'.*it has efficientnet-lite0"):
        fit_head(cohort, store, request(encoder="resnet50"), out)
    with pytest.raises(SplitError, match=r"not complete on it at 0\.2500 um/px"):
        fit_head(cohort, store, request(mpps=(0.25,)), out)
    with pytest.raises(PanelError, match="no such file"):
        fit_head(cohort, store, request(genes="panel.txt"), out)
    assert not out.exists()


def test_random_candidates_depend_on_the_seed_and_kmeans_does_not(store: FeatureStore) -> None:
    from mmap_st.head.dataset import load_slide, prototype_settings

    for kind, same in (("kmeans", True), ("random", False)):
        settings = parse_settings(head_method("mmap"), [f"prototypes={kind}"])
        centres = [
            load_slide(store, "A1", ENCODER, (1.0,), prototypes=prototype_settings(settings, seed)).centre
            for seed in (0, 1)
        ]
        assert np.array_equal(*centres) is same


def test_slides_that_are_half_extracted_are_skipped(
    simulated: Path, store: FeatureStore, tmp_path: Path
) -> None:
    """One slide that failed, or is still being written, must not stop the others from being fitted."""
    import shutil

    path = tmp_path / "f.zarr"
    shutil.copytree(store.path, path)
    cohort = open_cohort(f"her2st:{simulated}")
    for key in ("0.5000", "1.0000"):
        file = path / "B1" / ENCODER / key / "zarr.json"
        file.write_text(file.read_text().replace('"complete": true', '"complete": false'))
    (path / "C1" / "spots" / "zarr.json").unlink()
    report = fit_head(cohort, FeatureStore.open(path), request(), tmp_path / "run")
    assert report.skipped.keys() == {"B1"}
    assert "they are not complete, and were embedded" in report.failed["C1"]
    assert report.metrics.protocol.train == ("A1", "D1")


def test_counts_of_other_spots_fail_the_slide(simulated: Path, store: FeatureStore, tmp_path: Path) -> None:
    cohort = edit_counts(
        simulated,
        tmp_path / "her2st",
        "B1",
        lambda rows: [rows[0], *[[f"9{r[0]}", *r[1:]] for r in rows[1:]]],
    )
    report = fit_head(cohort, store, request(), tmp_path / "run")
    assert "no spot of the store" in report.failed["B1"]


def test_a_training_slide_without_targets_takes_no_part(
    simulated: Path, store: FeatureStore, tmp_path: Path
) -> None:
    cohort = edit_counts(
        simulated,
        tmp_path / "her2st",
        "B1",
        lambda rows: [rows[0], *[[r[0], *["0"] * (len(r) - 1)] for r in rows[1:]]],
    )
    report = fit_head(cohort, store, request("mmap", *FAST), tmp_path / "run")
    n = len(store.slide("B1").spot_ids())
    assert report.metrics.protocol.spots_without_target == {"B1": n}
    history = pl.read_csv(tmp_path / "run" / "history.csv")
    assert history["validation_mse"].is_finite().all()
    with pytest.raises(HeadError, match="no validation spot"):
        fit_head(cohort, store, request("mmap", *FAST, validation="slide=B1"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_shared_patients_are_those_of_slides_that_are_used(
    simulated: Path, store: FeatureStore, tmp_path: Path
) -> None:
    found = open_cohort(f"her2st:{simulated}")
    slides = (*found.slides, replace(found["E1"], slide="E2"))  # E2 is not in the store
    report = fit_head(Cohort(slides, "more"), store, request(test="slide=E1"), tmp_path / "run")
    assert report.metrics.protocol.shared_patients == ()
    assert report.warnings == []


def test_a_busy_slide_is_fitted_with_candidates_that_are_not_stored(
    cohort: Cohort, store: FeatureStore, tmp_path: Path, monkeypatch
) -> None:
    from mmap_st.extract.store.writing.lock import slide_lock
    from mmap_st.prototypes import stored

    monkeypatch.setattr(stored, "_WAIT_S", 0.1)
    with slide_lock(store.path, "A1"):
        fit_head(cohort, store, request("mmap", *FAST, "clusters=9"), tmp_path / "run")
    slide = store.slide("A1")
    _, built = stored.stored_candidates(
        store, slide, ENCODER, (0.5, 1.0), stored.CandidateSettings(clusters=9)
    )
    assert built


def test_files_that_a_user_put_into_a_run_are_kept(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fit_head(cohort, store, request(), out)
    (out / "figures").mkdir()
    (out / "figures" / "a.png").touch()
    fit_head(cohort, store, request(), out, overwrite=True)
    assert (out / "figures" / "a.png").is_file()
    assert (out / "metrics.json").is_file()
