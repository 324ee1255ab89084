"""The published protocols `hest-bench` and `triplex`, from a store to metrics.json."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from mmap_st.cli import app
from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort, read_counts
from mmap_st.errors import NormalisationError, PanelError, RequestError
from mmap_st.extract.imports.importing import import_features
from mmap_st.extract.imports.jobs import ImportRequest
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.interface import parse_settings
from mmap_st.head.registry import head_method
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import PROTOCOLS, FitRequest, evaluation_protocol

SIDE, GENES, WIDTH = 10, 120, 300
TRAIN, TEST = ("A1", "B1", "C1"), ("D1", "D2")


@pytest.fixture(scope="module")
def made(section_writer, tmp_path_factory) -> tuple[Path, Path]:
    """Sections of random counts, and a store of random embeddings that half of the genes follow a little."""
    root, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(5)
    level, shape = np.exp(rng.normal(0.0, 1.3, GENES)), rng.uniform(1.0, 6.0, GENES)
    weight = rng.normal(size=(WIDTH, GENES)) / np.sqrt(WIDTH) * (np.arange(GENES) % 2)
    names = [f"G{i:03d}" for i in rng.permutation(GENES)]
    for name in (*TRAIN, *TEST):
        # Stored as float16: these lose nothing.
        embedding = rng.normal(size=(SIDE**2, WIDTH)).astype(np.float16)
        mean = rng.gamma(shape, level / shape, (SIDE**2, GENES)) * np.exp(embedding @ weight)
        values = rng.poisson(mean)
        values[0] = 0  # a spot without any count
        array = [f"{x}x{y}" for y in range(1, SIDE + 1) for x in range(1, SIDE + 1)]
        rows = ["\t".join([spot, *map(str, row)]) for spot, row in zip(array, values, strict=True)]
        table = "\n".join(["\t".join(["", *names]), *rows]) + "\n"
        section_writer(name, root=root / "her2st", counts=table, side=SIDE, image=False)
        for folder, array in (("0.5", embedding), ("1", rng.normal(size=embedding.shape))):
            (root / folder).mkdir(exist_ok=True)
            np.save(root / folder / f"{name}.npy", array)
    cohort = open_cohort(f"her2st:{root / 'her2st'}")
    for folder in ("0.5", "1"):
        request = ImportRequest("random", float(folder), root / folder, cohort=cohort)
        assert len(import_features(request, root / "f.zarr").done) == 5
    return root / "her2st", root


def hest_score(root: Path) -> tuple[list[str], float]:
    """Panel and score as the HEST-Benchmark has them, written from the description of its protocol."""
    import anndata
    import scanpy

    cohort = open_cohort(f"her2st:{root / 'her2st'}")
    counts = {}
    for name in (*TRAIN, *TEST):
        table = read_counts(cohort[name])
        counts[name] = pd.DataFrame(table.matrix.toarray(), index=list(table.ids), columns=list(table.genes))
    seen = [set(c.columns[(c > 0).sum() >= np.ceil(0.10 * len(c))]) for c in counts.values()]
    stacked = pd.concat([c[sorted(set.intersection(*seen))] for c in counts.values()])
    table = anndata.AnnData(stacked.astype(np.float32).reset_index(drop=True).rename(index=str))
    scanpy.pp.log1p(table)
    scanpy.pp.highly_variable_genes(table, n_top_genes=50)
    panel = table.var_names[table.var["highly_variable"]][:50].tolist()

    def pooled(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        x = np.concatenate([np.load(root / "0.5" / f"{name}.npy").astype(np.float32) for name in names])
        return x, np.concatenate([np.log1p(counts[name][panel].to_numpy(float)) for name in names])

    (x, y), (x_test, y_test) = pooled(TRAIN), pooled(TEST)
    steps = Pipeline([("scaler", StandardScaler()), ("pca", PCA(256, random_state=1))])
    x, x_test = steps.fit_transform(x).astype(np.float32), steps.transform(x_test).astype(np.float32)
    alpha = 100 / (x.shape[1] * y.shape[1])
    ridge = Ridge(solver="lsqr", alpha=alpha, random_state=1, fit_intercept=False, max_iter=1000)
    predicted = ridge.fit(x, y).predict(x_test)
    return panel, float(np.mean([pearsonr(y_test[:, g], predicted[:, g])[0] for g in range(50)]))


def test_hest_bench_is_the_published_protocol(made, tmp_path: Path) -> None:
    layout, root = made
    words = ["fit-head", f"her2st:{layout}", str(root / "f.zarr"), "--encoder", "random"]
    out = tmp_path / "run"
    shown = CliRunner().invoke(
        app, [*words, "--protocol", "hest-bench", "--test", "patient=D", "--out", str(out)]
    )
    assert shown.exit_code == 0, shown.output
    metrics, card = (json.loads((out / name).read_text()) for name in ("metrics.json", "head.json"))
    panel, score = hest_score(root)
    assert card["panel"]["genes"] == panel
    assert metrics["test"]["pcc_pooled"] == pytest.approx(score, abs=1e-6)
    assert score > 0.1
    assert card["head"] == "hest-ridge"
    assert card["magnifications"] == [0.5]
    assert card["panel"]["slides"] == [*TRAIN, *TEST]
    assert card["normalisation"] == {
        "targets": "log1p-counts", "embeddings": "standardised over all training spots",
    }  # fmt: skip
    protocol = metrics["protocol"]
    assert protocol["name"] == "hest-bench"
    assert protocol["panel"] == "hest:50, chosen on all slides, test included"
    assert protocol["chosen"] == {"alpha": 100 / (256 * 50), "components": 256}
    assert protocol["smoothed"] is False
    assert protocol["spots_without_target"] == {}
    table = read_prediction(out / "predictions" / "D1.h5ad")
    assert table.uns["mmap"]["units"] == "log1p of counts, not scaled"
    again = predict_slides(out, FeatureStore.open(root / "f.zarr"), tmp_path / "again", ["D1"])
    np.testing.assert_array_equal(read_prediction(again.written["D1"]).X, table.X)


def request(protocol: str, head: str | None = None, *pairs: str, **changes) -> FitRequest:
    rules = evaluation_protocol(protocol)
    method = head_method(head or rules.head)
    made = FitRequest("efficientnet-lite0", method, parse_settings(method, pairs), protocol=rules)
    return replace(made, **{"test": "patient=E", **changes})


def test_a_request_goes_before_the_protocol(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    asked = request("hest-bench", genes="hest:12", mpps=(1.0, 0.5))
    report = fit_head(cohort, store, asked, tmp_path / "hest")
    assert report.metrics.protocol.panel == "hest:12, chosen on all slides, test included"
    assert report.metrics.test.pcc_pooled > 0.15
    card = json.loads((tmp_path / "hest" / "head.json").read_text())
    assert card["magnifications"] == [0.5, 1.0]
    panel = tmp_path / "panel.txt"
    panel.write_text("\n".join(read_counts(cohort["A1"]).genes[:6]))
    ridge = request("hest-bench", "ridge", genes=str(panel))
    report = fit_head(cohort, store, ridge, tmp_path / "ridge")
    assert report.metrics.protocol.panel == "file panel.txt"
    assert report.metrics.protocol.normalisation == "log1p-counts"
    validated = request("hest-bench", genes="hest:12", test=None, validation="slide=D1")
    report = fit_head(cohort, store, validated, tmp_path / "validated")
    assert report.metrics.protocol.panel == "hest:12, chosen on all slides"
    with pytest.raises(PanelError, match="50 genes are requested; "):
        fit_head(cohort, store, request("hest-bench"), tmp_path / "few")


def test_the_default_protocol_chooses_such_a_panel_on_training_slides(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    report = fit_head(cohort, store, request("default", "ridge", genes="hest:12"), tmp_path / "run")
    assert report.metrics.protocol.panel == "hest:12"
    card = json.loads((tmp_path / "run" / "head.json").read_text())
    assert card["panel"]["slides"] == ["A1", "B1", "C1", "D1"]


@pytest.mark.parametrize("head", ["ridge", None])
def test_triplex_smooths_training_and_test_targets(
    cohort: Cohort, store: FeatureStore, tmp_path: Path, head: str | None
) -> None:
    pairs = () if head else ("epochs=2", "width=16", "members=1")
    asked = request("triplex", head, *pairs, genes="hvg:20")
    report = fit_head(cohort, store, asked, tmp_path / "run")
    card = json.loads((tmp_path / "run" / "head.json").read_text())
    assert card["head"] == (head or "mmap")
    assert card["normalisation"]["targets"] == "log10-10k-panel-smoothed"
    assert card["panel"]["slides"] == ["A1", "B1", "C1", "D1"]
    protocol = report.metrics.protocol
    assert (protocol.name, protocol.panel, protocol.smoothed) == ("triplex", "hvg:20", True)
    table = read_prediction(tmp_path / "run" / "predictions" / "E1.h5ad")
    counts = read_counts(cohort["E1"]).rows_of(list(table.obs_names))
    counts = counts.columns_of(list(table.var_names))[0].toarray()
    plain = np.log10(counts / counts.sum(1, keepdims=True) * 1e4 + 1)
    places = [tuple(map(int, name.split("x"))) for name in table.obs_names]
    expected = [
        np.mean(
            [plain[j] for j, b in enumerate(places) if max(abs(a[0] - b[0]), abs(a[1] - b[1])) < 2], axis=0
        )
        for a in places
    ]
    np.testing.assert_allclose(table.layers["measured"], expected, rtol=1e-5)
    assert "smoothed" in table.uns["mmap"]["units"]


def test_triplex_has_the_default_panel_of_training_slides() -> None:
    assert request("triplex").panel == "hvg:250"
    assert request("triplex").magnifications is None


@pytest.mark.parametrize("name", ["hest-bench", "triplex"])
def test_they_need_counts(cohort: Cohort, store: FeatureStore, tmp_path: Path, name: str) -> None:
    lognorm = Cohort(tuple(replace(s, values="lognorm") for s in cohort.slides), "lognorm")
    with pytest.raises(NormalisationError, match=f"{name} needs counts"):
        fit_head(lognorm, store, request(name), tmp_path / "run")


def test_an_unknown_protocol_is_answered_with_all() -> None:
    with pytest.raises(RequestError, match="give one of default, legacy-mmap, hest-bench, triplex"):
        evaluation_protocol("hest")
    assert all(head_method(protocol.head) for protocol in PROTOCOLS.values())
