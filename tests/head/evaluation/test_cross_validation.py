"""Cross-validation from a store, as `mmap evaluate` does it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.counts import make_counts
from mmap_st.data.splits import Fold, Split
from mmap_st.errors import (
    EvaluationError,
    HeadError,
    PanelError,
    RequestError,
    SplitError,
    StoreError,
    WriteError,
)
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.evaluation import ablations, cross_validation, fold_runs
from mmap_st.head.evaluation import fold_jobs as jobs
from mmap_st.head.evaluation.ablations import EvaluateReport, evaluate
from mmap_st.head.evaluation.fold_runs import free_memory, parallel_jobs
from mmap_st.head.evaluation.folder import EvaluateRequest, evaluation_folder
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import plan_validation
from mmap_st.head.mmap.fitting import fit_mmap
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import fit_request
from mmap_st.head.runs.run_folder import only_run_writer
from mmap_st.head.scoring.results import as_json
from mmap_st.head.scoring.statistics import interval_over_patients
from mmap_st.report.run_report import report_run

ENCODER = "efficientnet-lite0"
METRICS = ("pcc_slide", "pcc_slide_hvg50", "mse", "mae")


def request(head: str = "ridge", *pairs: str, genes: str = "hvg:12", **changes) -> EvaluateRequest:
    fit = fit_request(ENCODER, head, "default", pairs, None, genes=genes)
    return replace(EvaluateRequest(fit, jobs=1), **changes)


@pytest.fixture(scope="module")
def evaluated(cohort: Cohort, store: FeatureStore, tmp_path_factory) -> tuple[Path, EvaluateReport]:
    out = tmp_path_factory.mktemp("evaluated") / "ridge"
    return out, evaluate(cohort, store, request(seeds=(0, 1)), out)


def test_a_run_holds_every_fold_its_predictions_and_what_they_add_up_to(evaluated) -> None:
    out, _ = evaluated
    kept = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert kept == {"request.json", "metrics.json", "genes.csv", "folds", "predictions"}
    assert sorted(p.name for p in (out / "folds").iterdir()) == ["A", "B", "C", "D", "E"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["protocol"]["folds"] == "leave one patient out"
    assert metrics["protocol"]["seeds"] == [0, 1]
    assert metrics["protocol"]["fold_slides"]["C"] == ["C1"]
    assert metrics["protocol"]["validation"] == ["inner folds by patient"]
    for patient in "ABCDE":
        card = json.loads((out / "folds" / patient / "seed1" / "head.json").read_text())
        assert card["slides"]["test"] == [f"{patient}1"]
        assert card["slides"]["train"] == [f"{other}1" for other in "ABCDE" if other != patient]
        held_out = read_prediction(out / "predictions" / f"{patient}1.h5ad")
        fold = read_prediction(out / "folds" / patient / "seed0" / "predictions" / f"{patient}1.h5ad")
        np.testing.assert_array_equal(held_out.X, fold.X)


def test_scores_are_means_over_the_held_out_slides(evaluated) -> None:
    out, report = evaluated
    folds = [json.loads((out / "folds" / p / "seed0" / "metrics.json").read_text()) for p in "ABCDE"]
    for row in ("test", "baseline_mean", "baseline_ridge"):
        for metric in (*METRICS, "pcc_pooled"):
            by_hand = np.mean([fold[row][metric] for fold in folds])
            assert getattr(report.metrics, row).value(metric) == pytest.approx(by_hand)
        by_slide = [fold[row]["slides"][f"{p}1"]["mse"] for fold, p in zip(folds, "ABCDE", strict=True)]
        interval = interval_over_patients(by_slide, list("ABCDE"))
        assert getattr(report.metrics, row).intervals["mse"] == pytest.approx(interval)
    covered = [
        fold["prediction_intervals"]["slides"][f"{p}1"] for fold, p in zip(folds, "ABCDE", strict=True)
    ]
    assert report.metrics.prediction_intervals.coverage == pytest.approx(np.mean(covered))
    ceiling = np.mean([fold["noise_ceiling"]["pcc_slide"] for fold in folds])
    assert report.metrics.noise_ceiling.pcc_slide == pytest.approx(ceiling)
    assert report.metrics.test.pcc_of_ceiling == pytest.approx(report.metrics.test.pcc_slide / ceiling)
    gain = report.metrics.gain_over_mean["pcc_slide"]
    assert gain.mean == pytest.approx(report.metrics.test.pcc_slide)
    assert gain.patients == 5
    assert gain.p_value is None
    assert gain.interval[0] > 0
    assert report.metrics.gain_over_ridge["mse"].mean == 0  # it is ridge
    assert report.metrics.test.spread["mse"] == 0  # which no seed changes


def test_genes_have_names_and_the_number_of_folds_that_chose_them(evaluated) -> None:
    out, _ = evaluated
    genes = pl.read_csv(out / "genes.csv")
    chosen = [json.loads((out / "folds" / p / "seed0" / "head.json").read_text()) for p in "ABCDE"]
    panels = [card["panel"]["genes"] for card in chosen]
    assert set(genes["gene"]) == {gene for panel in panels for gene in panel}
    for gene, folds, slides in genes.select("gene", "folds", "slides").rows():
        assert folds == slides == sum(gene in panel for panel in panels)
    everywhere = genes.filter(pl.col("folds") == 5)["gene"][0]
    scores = [
        pl.read_csv(out / "folds" / p / "seed0" / "genes.csv").filter(pl.col("gene") == everywhere)["pcc"][0]
        for p in "ABCDE"
    ]
    found = genes.filter(pl.col("gene") == everywhere)
    assert found["pcc"][0] == pytest.approx(np.mean(scores))
    assert found["ridge_pcc"][0] == pytest.approx(np.mean(scores))


def test_the_held_out_slides_are_drawn(evaluated, store: FeatureStore, tmp_path: Path) -> None:
    paths = report_run(evaluated[0], tmp_path, number=1, store=store)
    assert [p.name for p in paths[:2]] == ["A1_maps.png", "A1_prototypes.png"]
    assert len(paths) == 10


def test_a_finished_fold_is_not_fitted_again_and_more_seeds_may_follow(
    evaluated, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(evaluated[0], out)
    shutil.rmtree(out / "folds" / "B" / "seed1")
    (out / "metrics.json").unlink()

    def written() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in (out / "folds").rglob("metrics.json")}

    before = written()
    again = evaluate(cohort, store, request(seeds=(0, 1)), out).metrics
    after = written()
    assert [p for p in after if after[p] != before.get(p)] == [
        str(out / "folds" / "B" / "seed1" / "metrics.json")
    ]
    assert replace(again, seconds={}) == replace(evaluated[1].metrics, seconds={})
    more = evaluate(cohort, store, request(seeds=(0, 1, 2)), out).metrics
    assert more.protocol.seeds == (0, 1, 2)
    assert written().keys() - after.keys() == {
        str(out / "folds" / p / "seed2" / "metrics.json") for p in "ABCDE"
    }


def test_another_request_is_refused_and_says_what_differs(
    evaluated, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    out, _ = evaluated
    with pytest.raises(RequestError, match=r"another request \(genes: hvg:12, now hvg:13\)"):
        evaluate(cohort, store, request(genes="hvg:13"), out)
    with pytest.raises(RequestError, match="folds"):
        evaluate(cohort, store, request(folds="patient:2"), out)
    fewer = Cohort(cohort.slides[:4], cohort.source)
    with pytest.raises(RequestError, match=r"patients.*counts_sha256"):
        evaluate(fewer, store, request(), out)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="holds other things than an evaluation"):
        evaluate(cohort, store, request(), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(RequestError, match="is a file"):
        evaluate(cohort, store, request(), tmp_path / "notes.txt")


def test_two_evaluations_do_not_write_one_folder(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    with (
        evaluation_folder(tmp_path / "run"),
        pytest.raises(RequestError, match="being written by another evaluation"),
    ):
        evaluate(cohort, store, request(), tmp_path / "run")


def test_requests_that_cannot_be_met_are_one_sentence(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    unknown = replace(request().fit, encoder="resnet50")
    with pytest.raises(StoreError, match="no embeddings of 'resnet50'"):
        evaluate(cohort, store, replace(request(), fit=unknown), tmp_path / "run")
    with pytest.raises(SplitError, match="from 2 to 5"):
        evaluate(cohort, store, request(folds="patient:6"), tmp_path / "run")
    with pytest.raises(RequestError, match="ridge has no ablations"):
        evaluate(cohort, store, request(ablate=True), tmp_path / "run")
    with pytest.raises(RequestError, match=r"no fold can be evaluated; .*pca=9999"):
        evaluate(cohort, store, request("ridge", "pca=9999"), tmp_path / "run")


def test_a_fold_that_cannot_be_scored_is_named_and_the_others_are_done(
    simulated: Path, store: FeatureStore, tmp_path: Path
) -> None:
    import gzip

    from mmap_st.data.readers import open_cohort

    root = tmp_path / "her2st"
    shutil.copytree(simulated, root)
    file = root / "ST-cnts" / "E1.tsv.gz"
    header, *rows = gzip.decompress(file.read_bytes()).decode().splitlines()
    width = header.count("\t")
    empty = ["\t".join([row.split("\t")[0], *["0"] * width]) for row in rows]
    file.write_bytes(gzip.compress("\n".join([header, *empty]).encode()))
    report = evaluate(open_cohort(f"her2st:{root}"), store, request(), tmp_path / "run")
    assert report.failed_folds.keys() == {"E"}
    assert "no test spot" in report.failed_folds["E"]
    assert sorted(report.metrics.test.slides) == ["A1", "B1", "C1", "D1"]


def test_parallel_gives_the_same(evaluated, cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    report = evaluate(cohort, store, request(seeds=(0, 1), jobs=2), tmp_path / "run")
    for metric in METRICS:
        assert report.metrics.test.value(metric) == pytest.approx(
            evaluated[1].metrics.test.value(metric), abs=1e-6
        )


def test_a_worker_that_dies_is_one_sentence(
    cohort: Cohort, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold_runs, "_fit_in_worker", _die)
    with pytest.raises(EvaluationError, match="memory ran out"):
        evaluate(cohort, store, request(jobs=2), tmp_path / "run")


def test_workers_see_the_environment_of_now(
    cohort: Cohort, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that they are copies of is as old as the first evaluation."""
    for card in ("0", "1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", card)
        with fold_runs._pool(jobs.SharedInputs(cohort, store.path, {}), 1) as pool:
            assert pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == card


def _die(job: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_cores_memory_and_the_card_decide_how_many_fits_run_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fold_runs, "free_memory", lambda: int(40e9))
    monkeypatch.setattr(fold_runs, "usable_cores", lambda: 16)
    assert parallel_jobs(None, 100, "cpu", 3 * 10**9) == 6
    assert parallel_jobs(None, 3, "cpu", 3 * 10**9) == 3
    assert parallel_jobs(None, 100, "cpu", 5 * 10**9) == 4
    assert parallel_jobs(None, 100, "cpu", 10**12) == 1
    assert parallel_jobs(5, 100, "cpu", 10**12) == 5
    monkeypatch.setattr(fold_runs, "resolved_device", lambda device: "cuda")
    assert parallel_jobs(None, 100, "auto", 3 * 10**9) == 1
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:  2000 kB\n")
    assert free_memory(meminfo) == 2_048_000
    assert free_memory(tmp_path / "none") > 1e15


def test_a_fold_that_another_process_still_writes_is_waited_for_and_not_fitted_again(
    evaluated, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    """One may outlive the run that started it, and the same command is run again."""
    out, _ = evaluated
    fit = replace(request().fit, mpps=(0.5, 1.0))
    (job,) = jobs.plan_jobs(fit, [Fold("A", Split((), (), ("A1",)))], [0], tmp_path)
    shared = jobs.SharedInputs(cohort, store.path, {})

    def finish() -> None:
        time.sleep(1.0)
        shutil.copytree(out / "folds" / "A" / "seed0", job.out)
        writes.__exit__(None, None, None)

    writes = only_run_writer(job.out, 0.0)
    writes.__enter__()
    writer = threading.Thread(target=finish)
    writer.start()
    # It has no counts, and could not be fitted.
    assert jobs.fit_fold(shared, store, job, lambda text: None) == ""
    writer.join()
    assert sorted(path.name for path in job.out.iterdir()) == sorted(
        path.name for path in (out / "folds" / "A" / "seed0").iterdir()
    )
    with pytest.raises(KeyError):
        jobs.fit_fold(shared, store, replace(job, out=tmp_path / "other"), lambda text: None)


def test_kill_9_and_again_is_as_undisturbed(
    evaluated,
    simulated: Path,
    store: FeatureStore,
    mmap: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    command = ["evaluate", f"her2st:{simulated}", str(store.path)]
    command += ["--encoder", ENCODER, "--head", "ridge", "--genes", "hvg:12", "--seeds", "2"]
    command += ["--out", str(out)]
    parallel = [sys.executable, "-m", "mmap_st", *command, "--jobs", "2"]
    run = subprocess.Popen(parallel, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.glob("folds/*/seed*/metrics.json")):
        assert time.monotonic() < deadline
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    run.kill()
    run.communicate()  # ends when the workers, which share its pipes, are gone too
    done = list(out.glob("folds/*/seed*/metrics.json"))
    assert 1 <= len(done) < 10
    assert not (out / "metrics.json").exists()
    finished = mmap(*command, "--jobs", "1")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == str(out / "metrics.json")
    found = json.loads((out / "metrics.json").read_text())
    for metric in METRICS:
        assert found["test"][metric] == pytest.approx(evaluated[1].metrics.test.value(metric), abs=1e-6)


FAST = ("epochs=1", "width=16", "members=1", "components=8", "steps_per_epoch=1")


def test_ablations_are_the_head_with_one_thing_changed() -> None:
    settings = request("mmap").fit.settings
    found = {v.key: v for v in ablations.variants(settings, (0.5, 1.0))}
    assert found["only-0.5000"].mpps == (0.5,)
    assert found["only-0.5000"].settings == settings
    for variant in found.values():
        changed = [k for k, v in vars(variant.settings).items() if v != getattr(settings, k)]
        assert len(changed) == (0 if variant.key.startswith("only") else 1), variant
        assert variant.mpps == (0.5, 1.0) or not changed
    assert {f"selected-{n}" for n in (5, 10, 20, 40)} <= found.keys()
    assert {
        "no-prototypes",
        "random",
        "learned",
        "concatenated",
        "contrastive",
        "no-attention",
        "standardised",
        "one-strength",
        "unweighted",
        "uncentred",
    } <= found.keys()
    alone = {v.key for v in ablations.variants(replace(settings, prototypes="none"), (0.5,))}
    assert not any(key.startswith(("only", "selected", "clusters", "concat", "no-prot")) for key in alone)


def test_every_ablation_is_evaluated_where_none_is_named_and_can_be_fitted(
    head_slides: Callable[..., list[HeadSlide]],
) -> None:
    asked = request("mmap", *FAST, ablate=True)
    every = ablations.variants(asked.fit.settings, (0.5, 1.0))
    assert ablations.chosen_variants(asked, (0.5, 1.0)) == every
    slides = head_slides(slides=3, spots=40)
    for variant in every:
        head = fit_mmap(slides, plan_validation(slides, ()), variant.settings, 0, lambda text: None)
        assert np.isfinite(head.predict(slides[0])).all(), variant.key


def test_an_ablation_evaluates_each_variant_on_the_same_folds(
    cohort: Cohort, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "SELECTED", (5,))
    monkeypatch.setattr(ablations, "CLUSTERS", (16,))
    folds = tmp_path / "folds.csv"
    folds.write_text("slide,fold\nA1,1\nB1,2\nC1,3\n")
    out = tmp_path / "run"
    inputs = ("only-0.5000", "no-prototypes", "random", "selected-5", "clusters-16")
    chosen = (*inputs, "one-strength")
    asked = request("mmap", *FAST, folds=str(folds), ablate=True, variants=chosen)
    report = evaluate(cohort, store, asked, out)
    rows = {row.key: row for row in report.ablations}
    assert rows["whole"].pcc_slide == report.metrics.test.pcc_slide
    assert tuple(rows) == ("whole", *chosen)
    for key, row in rows.items():
        if key == "whole":
            continue
        kept = json.loads((out / "ablations" / key / "metrics.json").read_text())
        assert kept["protocol"]["fold_slides"] == as_json(report.metrics.protocol.fold_slides)
        assert row.pcc_slide == pytest.approx(kept["test"]["pcc_slide"])
        apart = row.difference["pcc_slide"]
        assert apart.mean == pytest.approx(row.pcc_slide - rows["whole"].pcc_slide)
        assert apart.interval is not None
    # So little training chooses 0 epochs: what changes ridge's input shows.
    for key in inputs:
        assert rows[key].difference["mse"].mean != 0, key
    table = pl.read_csv(out / "ablations.csv")
    assert table["variant"].to_list() == [row.variant for row in report.ablations]
    assert json.loads((out / "ablations.json").read_text())[1]["key"] == report.ablations[1].key
    some = evaluate(
        cohort, store, request("mmap", *FAST, folds=str(folds), ablate=True, variants=("random",)), out
    )
    assert some.ablations == [rows["whole"], rows["random"]]
    with pytest.raises(RequestError, match=r"there is no 'randon' \(did you mean random"):
        evaluate(
            cohort, store, request("mmap", *FAST, folds=str(folds), ablate=True, variants=("randon",)), out
        )


def test_a_variant_whose_fold_fails_is_named_and_left_out_and_others_are_whole(
    cohort: Cohort, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = tmp_path / "folds.csv"
    folds.write_text("slide,fold\nA1,1\nB1,2\n")
    fit_split = jobs.fit_split

    def fails(cohort, store, request, split, *others):
        if request.settings.prototypes == "none" and "A1" in split.test:
            raise HeadError("made to fail")
        return fit_split(cohort, store, request, split, *others)

    monkeypatch.setattr(jobs, "fit_split", fails)
    asked = request("mmap", *FAST, "blend=0", folds=str(folds), ablate=True)
    report = evaluate(cohort, store, replace(asked, variants=("no-prototypes", "random")), tmp_path / "run")
    assert report.failed_folds == {"no prototypes: 1": "made to fail"}
    assert [row.key for row in report.ablations] == ["whole", "random"]
    random = json.loads((tmp_path / "run" / "ablations" / "random" / "metrics.json").read_text())
    assert sorted(random["test"]["slides"]) == ["A1", "B1"]


def test_seeds_may_be_requested_in_any_order(
    evaluated, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(evaluated[0], out)
    shutil.rmtree(out / "folds" / "C" / "seed1")
    later = evaluate(cohort, store, request(seeds=(1, 2)), out).metrics
    for row in ("baseline_mean", "baseline_ridge"):
        assert getattr(later, row).mse == pytest.approx(getattr(evaluated[1].metrics, row).mse)
    assert later.gain_over_ridge["mse"].mean == 0


def test_inputs_that_changed_are_refused(
    evaluated, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(evaluated[0], out)
    renamed = replace(cohort, slides=tuple(replace(s, patient=f"{s.patient}x") for s in cohort.slides))
    with pytest.raises(RequestError, match=r"folds.*patients"):
        evaluate(renamed, store, request(), out)


def test_a_request_that_cannot_be_met_leaves_the_folder_free(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(PanelError, match="no such file"):
        evaluate(cohort, store, request(genes="nothere.txt"), out)
    assert not out.exists()
    with pytest.raises(RequestError, match="pca=9999"):
        evaluate(cohort, store, request("ridge", "pca=9999"), out)
    assert evaluate(cohort, store, request("mean"), out).metrics.test.pcc_slide == 0


def test_patients_that_only_the_store_knows_count_and_unknown_ones_give_no_interval(
    evaluated, cohort: Cohort, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nameless = replace(cohort, slides=tuple(replace(s, patient=None) for s in cohort.slides))
    found = evaluate(nameless, store, request("mean"), tmp_path / "known").metrics
    assert found.protocol.patients == 5
    assert found.test.intervals["mse"] == evaluated[1].metrics.baseline_mean.intervals["mse"]
    monkeypatch.setattr(cross_validation, "with_stored_patients", lambda cohort, store: cohort)
    unknown = evaluate(nameless, store, request("mean", folds="slide"), tmp_path / "unknown").metrics
    assert unknown.protocol.patients == 0
    assert unknown.test.intervals["mse"] is None
    assert unknown.gain_over_ridge["mse"].interval is None


def test_a_full_disk_ends_the_run_and_is_no_folds_fault(
    cohort: Cohort, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmap_st.head.runs.fit.write_head", full)
    with pytest.raises(WriteError, match="No space left on device"):
        evaluate(cohort, store, request("mean"), tmp_path / "run")


@pytest.mark.parametrize("protocol", ["legacy-mmap", "hest-bench", "triplex"])
def test_named_protocols_are_cross_validated_too(
    protocol: str, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    fit = fit_request(ENCODER, "ridge", protocol, ("alpha=1e4",), genes="hest:8")
    found = evaluate(cohort, store, EvaluateRequest(fit, jobs=1), tmp_path / "run").metrics
    assert found.protocol.name == protocol
    assert found.protocol.smoothed == (protocol == "triplex")
    assert ("test included" in found.protocol.panel) == (protocol == "hest-bench")
    # No patient of the test is in training, so that folds of slides would not be like it.
    assert found.protocol.validation == ("inner folds by patient",)
    assert (found.test.mse_zscored is not None) == (protocol == "legacy-mmap")
    folds = [
        json.loads((tmp_path / "run" / "folds" / p / "seed0" / "metrics.json").read_text()) for p in "ABCDE"
    ]
    by_hand = np.mean([fold["test"]["pcc_pooled"] for fold in folds])
    assert found.test.pcc_pooled == pytest.approx(by_hand)


def test_counts_are_known_again_however_wide_their_indices_are() -> None:
    table = make_counts(["a", "b"], ["X", "Y"], np.array([[1, 2], [0, 3]], np.float32))
    made, wide = Cohort((CohortSlide("S"),), "made"), sparse.csr_array(table.matrix)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    found = {
        jobs.SharedInputs(made, Path("f.zarr"), {"S": one}).counts_sha256
        for one in (table, replace(table, matrix=wide))
    }
    other = replace(table, matrix=2 * table.matrix)
    found.add(jobs.SharedInputs(made, Path("f.zarr"), {"S": other}).counts_sha256)
    assert len(found) == 2
