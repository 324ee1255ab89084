"""`mmap report`: figures of a run, from its predictions and the images behind them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from mmap_st.data import Thumbnail
from mmap_st.errors import (
    DamagedSlideError,
    MmapError,
    RequestError,
    SlideError,
    SlidesFailedError,
    counted,
    first_line,
    of_one_slide,
)
from mmap_st.extract.slides import thumbnail_of
from mmap_st.extract.store import FeatureStore, encode_name
from mmap_st.files import check_folder_out, file_name
from mmap_st.head import prototype_settings
from mmap_st.head.runs import (
    FOLDS,
    HEAD_JSON,
    MEASURED,
    PREDICTIONS,
    SPREAD,
    UNS,
    HeadCard,
    built_in_settings,
    read_card,
    read_prediction,
    restore_run,
)
from mmap_st.progress import ProgressCallback
from mmap_st.prototypes import CandidateSettings, stored_candidates
from mmap_st.report.figure import FORMATS, save_figure
from mmap_st.report.gene_choice import GeneChoice
from mmap_st.report.maps import (
    ONE_SCALE,
    OWN_SCALE,
    SlideMap,
    best_genes,
    expression_map,
)
from mmap_st.report.prototype_figure import prototypes_map
from mmap_st.urls import Place, place_named

if TYPE_CHECKING:
    import anndata

_LOG = logging.getLogger(__name__)
# Who names such a file wants one, and figures are several.
_FILE_ENDINGS = {".html", ".htm", ".pdf", ".png", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".zip"}


@dataclass(frozen=True)
class FigureOptions:
    """How figures are drawn.

    Attributes
    ----------
    formats
        Of `FORMATS`; each figure is written in each.
    scale, spread
        See `expression_map`.

    Raises
    ------
    RequestError
        If a format or a scale is not known.
    """

    formats: tuple[str, ...] = ("png",)
    scale: str = ONE_SCALE
    spread: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise RequestError(
                f"--format {','.join(self.formats)}: give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or"
                " several."
            )
        if self.scale not in (ONE_SCALE, OWN_SCALE):
            raise RequestError(f"--scale {self.scale}: give {ONE_SCALE} or {OWN_SCALE}.")


DEFAULT_FIGURES = FigureOptions()


@dataclass
class RunFigures:
    """Figures written, why slides of which there are none could not be drawn, and which genes are missing."""

    written: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def report_run(
    run: Path,
    out: Path,
    genes: Sequence[str] | None = None,
    *,
    number: int = 4,
    store: FeatureStore | None = None,
    tell: ProgressCallback = lambda text: None,
) -> list[Path]:
    """`draw_run`, for runs of which every slide can be drawn.

    Raises
    ------
    RequestError
        As of `draw_run`.
    SlidesFailedError
        If a slide cannot be drawn; the others are.
    """
    drawn = draw_run(run, out, genes, number=number, store=store, tell=tell)
    if drawn.failed:
        raise SlidesFailedError(drawn.failed)
    return drawn.written


def draw_run(
    run: Path,
    out: Path,
    genes: Sequence[str] | None = None,
    *,
    number: int = 4,
    store: FeatureStore | None = None,
    options: FigureOptions = DEFAULT_FIGURES,
    tell: ProgressCallback = lambda text: None,
) -> RunFigures:
    """Draw measured next to predicted maps of every slide that a run predicted.

    Parameters
    ----------
    run
        Folder of `mmap fit-head` or `mmap evaluate`, or one of .h5ad files of `mmap predict`.
    out
        Folder for the pictures.
    genes
        Which to draw, by name or id, or files of such; None: the `number` that correlate best on each slide.
    store
        The feature store of the run; None: no prototype maps.
    options
        How figures are drawn.
    tell
        Called with what is being drawn.

    Returns
    -------
    What was drawn. A slide that cannot be drawn does not stop the others; its reason is there. Genes that are
    on no panel are noted, and the others are drawn.

    Raises
    ------
    RequestError
        If there are no predictions, or none of the genes is on a panel.
    SlideError
        If a prediction cannot be read.
    """
    if os.path.isfile(out) or (out.suffix.lower() in _FILE_ENDINGS and not os.path.isdir(out)):
        raise RequestError(f"--out {out} is a file; figures are written into a folder, name one.")
    check_folder_out(out)
    files = prediction_files(run)
    if store is not None and not _has_head(run):
        raise RequestError(
            f"--store draws the prototypes that a head sees, and {run} holds predictions without their head;"
            " name the run of the head, or leave --store out (the page shows prototypes all the same)."
        )
    figures = RunFigures()
    choice = None if genes is None else GeneChoice(genes, known_cards(run))
    for place, file in enumerate(files, start=1):
        tell(f"drawing {file.stem} ({place} of {counted(len(files), 'slide')})")
        try:
            figures.written += _draw_slide(run, file, out, choice, number, store, options)
        except DamagedSlideError as error:
            figures.failed[file.stem] = str(error)
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            figures.failed[file.stem] = str(of_one_slide(error))
    if choice is not None:
        figures.notes += choice.notes
        if not figures.written and figures.notes:
            raise RequestError(f"no figure can be drawn: {'; '.join(figures.notes)}.")
    return figures


def prediction_files(run: Path) -> list[Path]:
    """The .h5ad files of a run, or of a folder of predictions; or the one that is named itself.

    Raises
    ------
    RequestError
        If there are none.
    """
    if run.is_file() and run.suffix == ".h5ad":
        return [run]
    restore_run(run)
    if not run.exists():
        raise RequestError(f"{run} does not exist; name a run, a folder of predictions, or one .h5ad.")
    folder = run / PREDICTIONS if (run / PREDICTIONS).is_dir() else run
    files = sorted(folder.glob("*.h5ad"))
    if not files:
        raise RequestError(
            f"{run} holds no predictions; `mmap fit-head --test ...`, `mmap evaluate` or `mmap predict`"
            " writes them."
        )
    return files


def _draw_slide(
    run: Path,
    file: Path,
    out: Path,
    choice: GeneChoice | None,
    number: int,
    store: FeatureStore | None,
    options: FigureOptions,
) -> list[Path]:
    table = read_table(file)
    slide, image = map_of(table), image_of(table)
    genes = None if choice is None else choice.of_slide(slide.name, slide.genes, slide.gene_ids)
    if genes is not None and not genes:
        raise SlideError("none of the genes is on the panel that it was predicted with.")
    chosen = genes or best_genes(slide, min(number, len(slide.genes)))
    caption = "" if genes else how_chosen(slide)
    figure = expression_map(slide, chosen, caption, scale=options.scale, spread=options.spread)
    figures = {f"{file.stem}_maps": figure}
    if store is not None:
        cards = _some_card(run).by_encoder
        for card in cards:
            whose = f"_{encode_name(card.encoder_name)}" if len(cards) > 1 else ""
            figures[f"{file.stem}{whose}_prototypes"] = _prototypes_of(store, slide, card, image)
    return [
        save_figure(figure, out / _file_name(name, ending))
        for name, figure in figures.items()
        for ending in options.formats
    ]


def _file_name(name: str, ending: str) -> str:
    """The file of a figure; what is cut of a long name is cut of the slide's."""
    stem, _, kind = name.rpartition("_")
    return file_name(stem, f"_{kind}.{ending}")


def how_chosen(slide: SlideMap) -> str:
    """What `best_genes` goes by, for a title."""
    score = "greatest spread" if slide.measured is None else "highest PCC"
    return f"the genes of {score} on this slide"


def _has_head(run: Path) -> bool:
    return (run / HEAD_JSON).is_file() or next(run.glob(f"{FOLDS}/*/seed*"), None) is not None


def _some_card(run: Path) -> HeadCard:
    """The card of a run's head; of a cross-validation, of its first fold: all see the same candidates."""
    if not (run / HEAD_JSON).is_file():
        folds = sorted(run.glob(f"{FOLDS}/*/seed*"))
        run = folds[0] if folds else run
    return read_card(run)


def known_cards(run: Path) -> list[HeadCard]:
    """The cards of a run's heads; none of a folder of predictions, or where they cannot be read."""
    try:
        return [
            read_card(file.parent)
            for file in (run / HEAD_JSON, *run.glob(f"{FOLDS}/*/seed*/{HEAD_JSON}"))
            if file.is_file()
        ]
    except MmapError:
        return []


def _prototypes_of(store: FeatureStore, slide: SlideMap, card: HeadCard, image: Place | None) -> Figure:
    """The prototype map of a predicted slide, with the candidates that its head sees, of one encoder."""
    wanted = prototype_settings(built_in_settings(card), card.seed)
    settings = wanted.candidates if wanted is not None else CandidateSettings()
    stored = store.slide(slide.name)
    candidates, _ = stored_candidates(store, stored, card.encoder_name, card.magnifications, settings)
    title = f"{slide.name}, {card.encoder_name}"
    return prototypes_map(title, slide.xy, candidates, slide.background, slide.mpp, image=image)


def load_map(file: Path) -> SlideMap:
    """Read a prediction and the thumbnail of its image, if that can be found.

    Raises
    ------
    SlideError
        If it is damaged, or no prediction.
    """
    return map_of(read_table(file))


def read_table(file: Path) -> anndata.AnnData:
    """Read a prediction.

    Raises
    ------
    SlideError
        If it is damaged, or no prediction.
    """
    try:
        table = read_prediction(file)
    except Exception as error:  # of many kinds, by what is damaged
        raise SlideError(f"{file} cannot be read ({first_line(error)}); predict the slide again.") from error
    if UNS not in table.uns:
        raise SlideError(
            f"{file} is not a prediction of mmap: it has no uns[{UNS!r}]; name the folder of some."
        )
    return table


def image_of(table: anndata.AnnData) -> Path | None:
    """The image that a prediction names, where it is on a disk: nothing is fetched because a file says so."""
    named = table.uns[UNS].get("image")
    return Path(str(named)) if named is not None and os.path.exists(str(named)) else None


def map_of(table: anndata.AnnData, image: Place | None = None) -> SlideMap:
    """What is drawn of a prediction.

    Parameters
    ----------
    table
        See `mmap_st.head.runs.prediction_files.write_prediction`.
    image
        Of the slide. None: the picture that the prediction holds, or else the image that it names, if that
        can be found.
    """
    about = table.uns[UNS]
    background = None if image is not None else thumbnail_in(table.uns.get("spatial", {}))
    named = about.get("image")
    if background is None:
        place = None if named is None else place_named(str(named))
        image = place if image is None and isinstance(place, Path) else image
        background = None if image is None else thumbnail_of(image)
    mpp = about.get("source_mpp")
    return SlideMap(
        name=str(about["slide"]),
        xy=np.asarray(table.obsm["spatial"], np.float64),
        genes=tuple(str(gene) for gene in table.var_names),
        predicted=np.asarray(table.X, np.float32),
        measured=np.asarray(table.layers[MEASURED], np.float32) if MEASURED in table.layers else None,
        background=background,
        mpp=None if mpp is None else float(mpp),
        units=str(about["units"]),
        spread=np.asarray(table.layers[SPREAD], np.float32) if SPREAD in table.layers else None,
        gene_ids=tuple(map(str, table.var["gene_ids"])) if "gene_ids" in table.var else None,
    )


def thumbnail_in(spatial: Mapping[str, Any]) -> Thumbnail | None:
    """The picture in ``uns["spatial"]`` of a slide's prediction; those of earlier versions hold none."""
    for library in dict(spatial).values():
        images, factors = library.get("images", {}), library.get("scalefactors", {})
        if "hires" in images and "tissue_hires_scalef" in factors:
            pixels = np.asarray(images["hires"])
            if pixels.dtype.kind == "f":  # from 0 to 1, as tools of scverse save pictures too
                pixels = np.rint(np.clip(pixels, 0, 1) * 255)
            return Thumbnail(pixels.astype(np.uint8), float(factors["tissue_hires_scalef"]))
    return None
