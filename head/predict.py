"""`mmap predict`: apply a trained head to slides of a store, sequenced or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmap_st.errors import HeadError, RequestError, SlideError, did_you_mean
from mmap_st.extract.recipe import differences, head_part
from mmap_st.extract.store import FeatureStore
from mmap_st.extract.windows import mpp_key
from mmap_st.head.dataset import check_tokens, load_slide, prototype_settings
from mmap_st.head.predictions import prediction_file, write_prediction
from mmap_st.head.run_folder import SavedHead, read_head


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
    slide = load_slide(store, name, saved.encoder, saved.mpps, prototypes=wanted, tokens=saved.method.tokens)
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
