"""Apply a trained head to slides of a store; predictions as AnnData files that other tools read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import NORMALISATIONS
from mmap_st.errors import WriteError, first_line
from mmap_st.extract.store import encode_name
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.scoring import Spread

if TYPE_CHECKING:
    import anndata
from collections.abc import Callable
from dataclasses import dataclass, field

from mmap_st.errors import HeadError, RequestError, SlideError, did_you_mean
from mmap_st.extract.store import FeatureStore, differences, head_part
from mmap_st.extract.windows import mpp_key
from mmap_st.files import replacing
from mmap_st.head.dataset import check_tokens, load_slide, prototype_settings
from mmap_st.head.row_cache import RowCache
from mmap_st.head.runs.run_folder import SavedHead, read_head

UNS = "mmap"
MEASURED, SPREAD = "measured", "spread"
INTERVAL = "interval_90"


def prediction_file(folder: Path, slide: str) -> Path:
    """Where a slide's prediction lies: ``<slide>.h5ad``, the name percent-encoded as in a store."""
    return folder / f"{encode_name(slide)}.h5ad"


def write_prediction(
    path: Path,
    slide: HeadSlide,
    predicted: NDArray[np.float32],
    genes: Sequence[str],
    about: Mapping[str, Any],
    spread: Spread | None = None,
) -> None:
    """Write one slide.

    Parameters
    ----------
    path
        Where to.
    slide
        Its spots become ``obs_names``, their centres ``obsm["spatial"]`` (level-0 px), and its targets, if
        it has them, ``layers["measured"]``.
    predicted
        (n, g) on the targets' scale; NaN for spots that are not valid.
    genes
        ``var_names``.
    about
        Written to ``uns["mmap"]``; holds at least ``normalisation``.
    spread
        Of the predictions: ``layers["spread"]`` is the standard deviation of each one's error, and X plus
        and minus ``var["interval_90"]`` times it holds the truth 9 times in 10. None: neither.
    """
    import anndata
    import pandas as pd

    table = anndata.AnnData(
        X=np.asarray(predicted, np.float32),
        obs=pd.DataFrame({"valid": slide.valid}, index=pd.Index(slide.ids, dtype=object)),
        var=pd.DataFrame(index=pd.Index(list(genes), dtype=object)),
        obsm={"spatial": slide.xy},
        layers={} if slide.target is None else {MEASURED: slide.target.dense()},
    )
    if spread is not None:
        table.layers[SPREAD] = spread.of(np.asarray(predicted, np.float32))
        table.var[INTERVAL] = spread.factor
    known = {key: value for key, value in about.items() if value is not None}
    table.uns[UNS] = {
        "slide": slide.name,
        "units": NORMALISATIONS[str(about["normalisation"])].units,
        "spatial_units": "level-0 pixels of the image, x to the right, y down",
        **known,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of anndata's own writers
        try:
            with replacing(path) as draft:
                table.write_h5ad(draft, compression="gzip")
        except OSError as error:
            raise WriteError(f"{path} cannot be written ({first_line(error)}); free some space.") from error


def read_prediction(path: Path) -> anndata.AnnData:
    """Read one slide."""
    import anndata

    return anndata.read_h5ad(path)


@dataclass
class PredictReport:
    """Files written, and slides that were passed over or failed, with the reason."""

    written: dict[str, Path] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def predict_slides(
    run: Path,
    store: FeatureStore,
    out: Path,
    slides: Sequence[str] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> PredictReport:
    """Write one .h5ad a slide.

    Parameters
    ----------
    run
        Folder of a trained head.
    store
        Where the embeddings are.
    out
        Folder to write to.
    slides
        Names; None: all slides of the store that have what the head needs.

    Raises
    ------
    RequestError
        If a slide is not in the store, or none can be predicted.
    """
    saved = read_head(run)
    unknown = [name for name in slides or () if not store.has_slide(name)]
    if unknown:
        raise RequestError(
            f"{store.path} has no slide {', '.join(unknown)}{did_you_mean(unknown[0], store.slides())}."
        )
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder.")
    report = PredictReport()
    for name in slides or store.slides():
        missing = _missing(saved, store, name)
        if missing:
            report.passed_over[name] = missing
            continue
        tell(f"predicting {name}")
        try:
            report.written[name] = _predict(saved, store, name, out)
        except SlideError as error:
            report.failed[name] = str(error)
    if not report.written and not report.failed:
        raise RequestError(
            f"no slide of {store.path} has what the head needs:"
            f" {saved.encoder} at {', '.join(mpp_key(mpp) for mpp in saved.mpps)} um/px"
            f"{f', with {saved.tokens} x {saved.tokens} tokens' if saved.tokens else ''}."
        )
    return report


def _missing(saved: SavedHead, store: FeatureStore, name: str) -> str | None:
    slide = store.slide(name)
    complete = slide.complete(saved.encoder)
    missing = [mpp_key(mpp) for mpp in saved.mpps if mpp not in complete]
    if missing:
        return f"{saved.encoder} is not complete at {', '.join(missing)} um/px"
    try:
        side = check_tokens([slide], saved.encoder, saved.mpps, saved.method)
    except HeadError as error:
        return str(error)
    if side != saved.tokens:
        return f"it has {side} x {side} tokens, and the head was trained on {saved.tokens} x {saved.tokens}"
    return None


def _predict(saved: SavedHead, store: FeatureStore, name: str, out: Path) -> Path:
    stored = store.slide(name)
    for magnification in stored.complete(saved.encoder).values():
        different = differences(saved.card["encoder"], head_part(magnification.recipe))
        if magnification.mpp in saved.mpps and different:
            raise SlideError(
                f"it was embedded otherwise than the head's training slides ({'; '.join(different)});"
                " extract it alike."
            )
    wanted = prototype_settings(saved.settings, saved.card["seed"])
    slide = load_slide(
        store,
        name,
        saved.encoder,
        saved.mpps,
        prototypes=wanted,
        tokens=saved.method.tokens,
        cache=RowCache(),
    )
    out.mkdir(parents=True, exist_ok=True)
    path = prediction_file(out, name)
    about = {
        "head": saved.method.name,
        "encoder": saved.encoder,
        "normalisation": saved.card["normalisation"]["targets"],
        "source_mpp": stored.source_mpp,
    }
    write_prediction(path, slide, saved.head.predict(slide), saved.genes, about, saved.spread)
    return path
