"""Encoders and heads on the same folds, as `mmap compare` does it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.errors import HeadError, RequestError
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.evaluation import comparison as comparison_run
from mmap_st.head.evaluation.ablations import evaluate
from mmap_st.head.evaluation.comparison import CompareReport, compare
from mmap_st.head.evaluation.comparison_rows import CompareRequest, make_heads, make_rows, scatter_pair
from mmap_st.head.evaluation.folder import EvaluateRequest
from mmap_st.head.evaluation.results import CommonProtocol, ComparisonResult, RowResult
from mmap_st.head.runs.request import fit_request
from mmap_st.head.scoring.results import Scores, SlideScores, as_json
from mmap_st.head.scoring.statistics import paired_difference
from mmap_st.report.comparison import notes, table_of, write_markdown
from mmap_st.report.comparison_plots import draw_comparison, draw_genes

ENCODER, TINY = "efficientnet-lite0", "timm:test_efficientnet"
METRICS = ("pcc_slide", "pcc_slide_hvg50", "mse", "mae")


@pytest.fixture(scope="module")
def two_encoders(cohort: Cohort, store: FeatureStore, tmp_path_factory) -> FeatureStore:
    """The simulated sections, embedded by a second encoder too."""
    path = tmp_path_factory.mktemp("two") / "features.zarr"
    shutil.copytree(store.path, path)
    report = extract_cohort(cohort, path, EncoderRequest(encoder_spec(TINY), random_weights=True), (0.5, 1.0))
    assert not report.failed
    return FeatureStore.open(path)


def request(*heads: str, pairs: tuple[str, ...] = (), **changes) -> CompareRequest:
    made = make_heads(heads or ("ridge", "mean"), pairs, "default", genes="hvg:12")
    return replace(CompareRequest((ENCODER, TINY), made, jobs=1), **changes)


@pytest.fixture(scope="module")
def compared(cohort: Cohort, two_encoders: FeatureStore, tmp_path_factory) -> tuple[Path, CompareReport]:
    out = tmp_path_factory.mktemp("compared") / "run"
    return out, compare(cohort, two_encoders, request(seeds=(0, 1)), out)


def row_of(report: CompareReport, key: str) -> RowResult:
    return next(row for row in report.result.rows if row.key == key)


def test_a_row_is_what_evaluate_says(compared, cohort: Cohort, two_encoders, tmp_path: Path) -> None:
    _, report = compared
    assert [row.key for row in report.result.rows] == [
        f"{encoder}/{head}" for encoder in (ENCODER, TINY) for head in ("ridge", "mean")
    ]
    fit = fit_request(ENCODER, "ridge", genes="hvg:12")
    alone = evaluate(cohort, two_encoders, EvaluateRequest(fit, seeds=(0, 1), jobs=1), tmp_path / "ridge")
    row = row_of(report, f"{ENCODER}/ridge")
    for metric in (*METRICS, "pcc_pooled"):
        assert row.value(metric) == pytest.approx(alone.metrics.test.value(metric), rel=1e-9)
    # Its numbers do not depend on the seed: a comparison fits it once.
    assert row.scores.spread is None
    assert row.scores.slides.keys() == alone.metrics.test.slides.keys()
    for slide, scores in row.scores.slides.items():
        assert scores.pcc == pytest.approx(alone.metrics.test.slides[slide].pcc, rel=1e-9)
    mean = row_of(report, f"{ENCODER}/mean")
    for metric in METRICS:
        assert mean.value(metric) == pytest.approx(alone.metrics.baseline_mean.value(metric))


def test_differences_are_paired_within_an_encoder(compared) -> None:
    _, report = compared
    for encoder in (ENCODER, TINY):
        ridge, mean = (row_of(report, f"{encoder}/{head}") for head in ("ridge", "mean"))
        assert not {"mmap", "ridge"} & set(ridge.differences)
        slides = list(mean.scores.slides)
        by_hand = paired_difference(
            *([row.scores.slides[s].mse for s in slides] for row in (mean, ridge)), slides
        )
        cell = mean.difference("ridge", "mse")
        assert cell.mean == pytest.approx(by_hand.mean)
        # Five patients: neither interval nor test.
        assert cell.interval is None
        assert cell.p_value is None
        assert cell.p_holm is None


def test_cost_is_that_of_the_saved_heads(compared) -> None:
    _, report = compared
    mean, ridge = (row_of(report, f"{ENCODER}/{head}") for head in ("mean", "ridge"))
    assert mean.parameters == 12
    assert ridge.parameters == 2 * 1280 * 12 + 12
    assert ridge.seconds["fit"] > 0


def test_a_finished_row_is_not_fitted_again_and_others_may_follow(
    compared, cohort: Cohort, two_encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, report = compared
    fitted = []
    real = comparison_run.run_jobs

    def noting(shared, jobs, *others):
        fitted.extend(job.name for job in jobs if not job.done)
        return real(shared, jobs, *others)

    monkeypatch.setattr(comparison_run, "run_jobs", noting)
    before = report.result.rows
    again = compare(cohort, two_encoders, request(seeds=(0, 1)), out)
    assert not fitted
    assert again.result.rows == before
    heads = request("ridge", "mean", "hest-ridge", seeds=(0, 1), encoders=(TINY,))
    more = compare(cohort, two_encoders, heads, out)
    assert len(fitted) == 5  # its numbers do not depend on the seed: it is fitted with the first alone
    assert all(name.startswith(f"{TINY}/hest-ridge, fold") for name in fitted)
    assert row_of(more, f"{TINY}/ridge").value("mse") == row_of(report, f"{TINY}/ridge").value("mse")


def test_sets_of_magnifications_are_compared(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    sets = request("ridge", encoders=(ENCODER,), magnifications=((0.5,), (0.5, 1.0)))
    report = compare(cohort, store, sets, tmp_path / "run")
    assert [row.key for row in report.result.rows] == [f"{ENCODER}/ridge@0.5", f"{ENCODER}/ridge@0.5,1"]
    assert report.result.rows[0].magnifications == (0.5,)
    assert report.result.rows[0].value("mse") != report.result.rows[1].value("mse")


def test_the_same_slides_are_used_for_every_encoder(
    cohort: Cohort, two_encoders: FeatureStore, tmp_path: Path
) -> None:
    path = tmp_path / "features.zarr"
    shutil.copytree(two_encoders.path, path)
    stored = FeatureStore.open(path).slide("B1")
    (folder,) = [p for p in (path / "B1").iterdir() if p.name.startswith("timm")]
    assert stored.complete(TINY)
    shutil.rmtree(folder)
    report = compare(cohort, FeatureStore.open(path), request("mean"), tmp_path / "run")
    assert report.skipped == {"B1": f"{TINY} is not complete on it"}
    for row in report.result.rows:
        assert sorted(row.scores.slides) == ["A1", "C1", "D1", "E1"]


def test_a_head_that_fails_is_a_row_with_its_reason(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    heads = request("ridge", "mean", pairs=("ridge.pca=5000",), encoders=(ENCODER,))
    report = compare(cohort, store, heads, tmp_path / "run")
    failed, mean = report.result.rows
    assert "pca=5000 is more than" in failed.reason
    assert mean.reason is None
    assert mean.differences == {}
    assert list(report.failed_folds) == [f"{ENCODER}/ridge"]
    _, lines = table_of(report.result.rows)
    assert lines[0][:3] == [f"{ENCODER}/ridge", "not evaluated", ""]
    assert "ridge is not evaluated: no fold can be evaluated; fold A: pca=5000" in notes(report.result)[-1]
    csv = pl.read_csv(tmp_path / "run" / "compare.csv")
    assert csv["reason"].to_list() == [failed.reason, None]


def test_a_row_that_does_not_apply_says_so_and_is_no_failure(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    report = compare(cohort, store, request("tcgn", "mean", encoders=(ENCODER,)), tmp_path / "run")
    tcgn, mean = report.result.rows
    assert "tcgn needs tokens of efficientnet-lite0" in tcgn.reason
    assert "--tokens" in tcgn.reason
    assert mean.reason is None
    assert not report.failed_folds
    assert not (tmp_path / "run" / "rows" / ENCODER / "tcgn").exists()


@pytest.mark.parametrize(
    ("heads", "pairs", "part"),
    [
        (("ridge", "rigde"), (), "did you mean ridge"),
        (("ridge", "ridge"), (), "name each head once"),
        (("ridge",), ("alpha=3",), "HEAD.KEY=VALUE"),
        (("ridge",), ("mmap.width=3",), "the heads are ridge"),
        (("ridge",), ("ridge.width=3",), "no setting 'width'"),
    ],
)
def test_requests_that_cannot_be_met_are_one_sentence(heads, pairs, part: str) -> None:
    with pytest.raises((HeadError, RequestError), match=part):
        make_heads(heads, pairs, "default")


def test_prototypes_are_for_the_heads_that_use_some() -> None:
    mmap, ridge = make_heads(("mmap", "ridge"), ("mmap.width=16",), "default", "none")
    assert (mmap.settings.prototypes, mmap.settings.width) == ("none", 16)
    assert ridge.settings == request("ridge").heads[0].settings
    with pytest.raises(RequestError, match="none of the heads ridge uses any"):
        make_heads(("ridge",), (), "default", "none")


def test_an_unknown_encoder_and_a_folder_of_something_else_are_refused(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="uni2"):
        compare(cohort, store, request("mean", encoders=("uni2",)), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    fit = fit_request(ENCODER, "mean", genes="hvg:12")
    evaluate(cohort, store, EvaluateRequest(fit, jobs=1), tmp_path / "b")
    with pytest.raises(RequestError, match="holds an evaluation"):
        compare(cohort, store, request("mean", encoders=(ENCODER,)), tmp_path / "b")
    compare(cohort, store, request("mean", encoders=(ENCODER,)), tmp_path / "c")
    with pytest.raises(RequestError, match="holds a comparison"):
        evaluate(cohort, store, EvaluateRequest(fit, jobs=1), tmp_path / "c")


def test_labels_are_compared_with_clusters(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    ids = store.slide("A1").spot_ids()
    (tmp_path / "A1.csv").write_text(
        "id,label\n" + "".join(f"{spot},{'left' if i % 2 else 'right'}\n" for i, spot in enumerate(ids))
    )
    (tmp_path / "B1.csv").write_text("id,label\nnowhere,left\n")
    labelled = replace(
        cohort,
        slides=tuple(
            replace(s, labels=tmp_path / f"{s.slide}.csv") if s.slide in ("A1", "B1") else s
            for s in cohort.slides
        ),
    )
    report = compare(labelled, store, request(encoders=(ENCODER,)), tmp_path / "run")
    ridge, mean = report.result.rows
    assert list(ridge.ari_slides) == ["A1"]
    assert ridge.ari == ridge.ari_slides["A1"]
    assert abs(ridge.ari) < 0.2
    assert mean.ari == 0.0
    assert "labels of B1 are left out" in report.warnings[0]
    assert "ARI" in table_of(report.result.rows)[0]


def made_rows(patients: int, seed: int = 0) -> ComparisonResult:
    """Rows of a comparison whose heads differ by known amounts."""
    from mmap_st.head.evaluation.comparison_rows import compare_rows

    rng = np.random.default_rng(seed)
    slides = [f"S{i}" for i in range(patients)]
    base = rng.normal(0.3, 0.1, patients)
    rows = []
    for head, gain in (("mmap", 0.05), ("ridge", 0.0), ("knn", -0.1)):
        pcc = base + gain + 0.01 * rng.normal(size=patients)
        of_slides = {
            s: SlideScores(n_spots=10, pcc=v, pcc_hvg50=v, mse=1 - v, mae=1 - v, undefined_genes=0)
            for s, v in zip(slides, pcc.tolist(), strict=True)
        }
        mean = float(pcc.mean())
        scores = Scores(of_slides, mean, mean, 0.5, 1 - mean, 1 - mean, intervals=dict.fromkeys(METRICS))
        rows.append(
            RowResult(
                f"uni/{head}", "uni", head, (0.5,), scores=scores, parameters=1_234_567,
                seconds={"fit": 1.0, "predict": 0.1},
            )
        )  # fmt: skip
    protocol = CommonProtocol(
        name="default", folds="patient", fold_slides={s: (s,) for s in slides}, seeds=(0,),
        patients=patients, shared_patients=(), panel="hvg:12", genes=(12,),
        normalisation="log1p", smoothed=False,
    )  # fmt: skip
    return compare_rows(rows, protocol, {s: s for s in slides})


def test_with_six_patients_there_are_intervals_and_corrected_p_values() -> None:
    from statsmodels.stats.multitest import multipletests

    rows = made_rows(10).rows
    cells = {row.head: row.difference("ridge", "mse") for row in rows if "ridge" in row.differences}
    assert set(cells) == {"mmap", "knn"}
    theirs = multipletests([cell.p_value for cell in cells.values()], method="holm")[1]
    assert [cell.p_holm for cell in cells.values()] == pytest.approx(list(theirs))
    assert cells["mmap"].interval[1] < 0 < cells["knn"].interval[0]
    few = made_rows(5).rows
    assert few[2].difference("mmap", "mse").interval is None
    assert few[2].difference("mmap", "mse").p_holm is None


def test_it_is_drawn_and_written(compared, tmp_path: Path) -> None:
    out, report = compared
    rows = report.result.rows
    assert draw_comparison(rows, tmp_path / "a.png").stat().st_size > 10_000
    assert draw_comparison(made_rows(10).rows, tmp_path / "b.png").stat().st_size > 10_000
    assert draw_comparison([], tmp_path / "c.png") is None
    files = [comparison_run.row_genes(out, row) for row in rows if row.head == "ridge"]
    picture = draw_genes((f"{TINY}/ridge", files[1]), (f"{ENCODER}/ridge", files[0]), tmp_path / "genes.png")
    assert picture.stat().st_size > 10_000
    text = write_markdown(made_rows(10), tmp_path / "t.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 5
    assert len({line.count("|") for line in table}) == 1
    assert "Holm" in text
    assert "1.23M" in text
    assert "at least 6 patients" in write_markdown(made_rows(4), tmp_path / "t.md").read_text()


def test_two_rows_can_be_named_before_any_work() -> None:
    asked = replace(request("ridge", "mmap", "mean"), encoders=("org/mmapx", "b"))
    rows = make_rows(asked, {(0.5,): (0.5,), (0.5, 1.0): (0.5, 1.0)})
    assert scatter_pair(rows, None) == ("org/mmapx/mmap@0.5", "org/mmapx/ridge@0.5")
    assert scatter_pair(rows, "b/mean@0.5,1, b/mmap@0.5") == ("b/mean@0.5,1", "b/mmap@0.5")
    assert scatter_pair([row for row in rows if row.head != "mmap"], None) is None
    with pytest.raises(RequestError, match="give two rows"):
        scatter_pair(rows, "b/mean@0.5")
    with pytest.raises(RequestError, match="did you mean b/mean"):
        scatter_pair(rows, "b/meen@0.5,b/mmap@0.5")


def test_encoders_and_magnifications_are_compared_with_the_first(
    compared, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    rows = compared[1].result.rows
    assert "first encoder" not in row_of(compared[1], f"{ENCODER}/ridge").differences
    cell = row_of(compared[1], f"{TINY}/ridge").difference("first encoder", "mse")
    assert cell.mean == pytest.approx(rows[2].value("mse") - rows[0].value("mse"))
    assert cell.p_value is None
    sets = request("ridge", encoders=(ENCODER,), magnifications=((0.5,), (0.5, 1.0)))
    one, two = compare(cohort, store, sets, tmp_path / "run").result.rows
    cell = two.difference("first magnifications", "pcc_slide")
    assert cell.mean == pytest.approx(two.value("pcc_slide") - one.value("pcc_slide"))
    assert list(one.differences) == []
    assert "PCC, to its head, first magnifications" in table_of([one, two])[0]


def test_where_no_row_applies_the_request_is_refused(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(HeadError.__mro__[1], match="tcgn needs tokens"):
        compare(cohort, store, request("tcgn", encoders=(ENCODER,)), tmp_path / "run")
    heads = make_heads(("mean",), (), "default", genes="hvg:100000")
    with pytest.raises(RequestError, match="100000 genes are requested"):
        compare(cohort, store, CompareRequest((ENCODER,), heads), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_head_that_raises_is_its_own_rows_fault_alone(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(
        "from mmap_st.head.linear.mean import MEAN, MeanSettings, load_mean\n"
        "from mmap_st.head.interface import HeadMethod\n"
        "def fit(train, validation, settings, seed, tell):\n"
        "    raise KeyError('no such thing')\n"
        "BAD = HeadMethod('bad', MeanSettings, fit, load_mean)\n"
    )
    folds = tmp_path / "folds.csv"
    folds.write_text("slide,fold\nA1,1\nB1,2\n")
    heads = make_heads([f"{tmp_path / 'bad.py'}:BAD", "mean"], (), "default", genes="hvg:12")
    report = compare(
        cohort, store, CompareRequest((ENCODER,), heads, folds=str(folds), jobs=1), tmp_path / "run"
    )
    bad, mean = report.result.rows
    assert "the head bad fails (KeyError: 'no such thing')" in bad.reason
    assert mean.reason is None


def test_seeds_are_for_heads_that_depend_on_them(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    folds = tmp_path / "folds.csv"
    folds.write_text("slide,fold\nA1,1\nB1,2\n")
    pairs = ("histogene.epochs=1", "histogene.width=16")
    heads = request("mean", "histogene", pairs=pairs, encoders=(ENCODER,), folds=str(folds), seeds=(0, 1))
    mean, network = compare(cohort, store, heads, tmp_path / "run").result.rows
    assert mean.scores.spread is None
    assert network.scores.spread["mse"] > 0


def test_kill_9_and_again_is_as_undisturbed(
    cohort: Cohort,
    simulated: Path,
    two_encoders: FeatureStore,
    mmap: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    pairs = ("histogene.epochs=1", "histogene.width=16")
    asked = request("ridge", "histogene", pairs=pairs, encoders=(TINY,), jobs=1)
    undisturbed = compare(cohort, two_encoders, asked, tmp_path / "undisturbed").result
    out = tmp_path / "run"
    command = ["compare", f"her2st:{simulated}", str(two_encoders.path)]
    command += ["--encoders", TINY, "--heads", "ridge,histogene", "--genes", "hvg:12"]
    command += [word for pair in pairs for word in ("--set", pair)]
    command += ["--scatter", f"{TINY}/histogene,{TINY}/ridge", "--out", str(out)]
    parallel = [sys.executable, "-m", "mmap_st", *command, "--jobs", "2"]
    run = subprocess.Popen(parallel, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while len(list(out.glob("rows/*/*/*/folds/*/seed*/metrics.json"))) < 2:
        assert time.monotonic() < deadline
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    run.kill()
    run.communicate()  # ends when the workers, which share its pipes, are gone too
    assert len(list(out.glob("rows/*/*/*/folds/*/seed*/metrics.json"))) < 10
    assert not (out / "compare.json").exists()
    done = mmap(*command, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "compare.json").read_text())
    expected = as_json(undisturbed)
    for row in (*found["rows"], *expected["rows"]):
        row.pop("seconds")
    assert found == expected
    names = ("compare.json", "compare.csv", "compare.md", "compare.png", "genes.png")
    assert done.stdout.splitlines()[-5:] == [str(out / name) for name in names]
