"""Predictions for other tools: which slides, which genes, and files that are there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmap_st.errors import RequestError, SlideError, WriteError, counted, of_one_slide
from mmap_st.files import cannot_be_written, check_folder_out, file_name, refuse_clashes
from mmap_st.head.runs import UNS
from mmap_st.progress import ProgressCallback
from mmap_st.report.exports.geojson import write_geojson
from mmap_st.report.exports.spatialdata_store import check_spatialdata, write_spatialdata
from mmap_st.report.exports.tables import LAYERS, layer_tables, write_csv, write_parquet
from mmap_st.report.gene_choice import GeneChoice
from mmap_st.report.maps import best_genes
from mmap_st.report.run_report import known_cards, map_of, prediction_files, read_table

if TYPE_CHECKING:
    import anndata

#: Formats, and how their files end.
ENDINGS = {"csv": ".csv", "parquet": ".parquet", "geojson": ".geojson", "spatialdata": ".zarr"}
#: Genes of a GeoJSON file where none are named: every one of them is written for every spot.
FEW_GENES = 20


@dataclass
class Exported:
    """Files written, why slides of which there are none could not be, and what to know."""

    written: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def export_predictions(
    run: Path,
    out: Path,
    formats: Sequence[str],
    genes: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    tell: ProgressCallback = lambda text: None,
) -> Exported:
    """Write predictions as files that other tools read.

    Parameters
    ----------
    run
        Folder of `mmap fit-head` or `mmap evaluate`, or one of .h5ad files of `mmap predict`.
    out
        Folder to write to.
    formats
        Of `ENDINGS`.
    genes
        Which to write, by name or id, or files of such; None: all, and in GeoJSON the `FEW_GENES` that are
        predicted best on each slide.
    overwrite
        Whether files that are there are replaced.
    tell
        Called with what is being written.

    Returns
    -------
    What was written. A slide that cannot be exported does not stop the others; its reason is there.

    Raises
    ------
    RequestError
        If a format is not known, there are no predictions, none of the genes is on a panel, or a file is in
        the way.
    MissingDependencyError
        If a format needs a package that is not installed.
    """
    unknown = [name for name in formats if name not in ENDINGS]
    if unknown or not formats:
        *first, last = ENDINGS
        raise RequestError(f"--format {','.join(formats)}: give {', '.join(first)} or {last}, or several.")
    if "spatialdata" in formats:
        check_spatialdata()
    files = prediction_files(run)
    check_folder_out(out)
    wanted = [path for file in files for name in formats for path in _files_of(name, out, file.stem)]
    refuse_clashes((path.name for path in wanted), out)
    in_the_way = [path for path in wanted if path.exists()]
    if in_the_way and not overwrite:
        raise RequestError(f"{in_the_way[0]} is there already; give --overwrite to replace it.")
    done, choice = Exported(), None if genes is None else GeneChoice(genes, known_cards(run))
    out.mkdir(parents=True, exist_ok=True)
    for place, file in enumerate(files, start=1):
        tell(f"writing {file.stem} ({place} of {counted(len(files), 'slide')})")
        try:
            table = _of_genes(read_table(file), choice)
            for name in formats:
                done.written += _write(name, out, file.stem, table, named=choice is not None)
        except OSError as error:
            raise WriteError(f"{out} {cannot_be_written(error, 'name another folder')}") from error
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            done.failed[file.stem] = str(of_one_slide(error))
    if choice is not None:
        done.notes += choice.notes
        if not done.written and done.notes:
            raise RequestError(f"nothing can be written: {'; '.join(done.notes)}.")
    return done


def _files_of(name: str, out: Path, stem: str) -> list[Path]:
    """Every file that may be written of a slide in one format."""
    added = LAYERS if name in ("csv", "parquet") else ("",)
    return [out / file_name(stem, f"{one}{ENDINGS[name]}") for one in added]


def _of_genes(table: anndata.AnnData, choice: GeneChoice | None) -> anndata.AnnData:
    if choice is None:
        return table
    shown = map_of(table)
    genes = choice.of_slide(shown.name, shown.genes, shown.gene_ids)
    if not genes:
        raise SlideError("none of the genes is on the panel that it was predicted with.")
    return table[:, genes].copy()


def _write(name: str, out: Path, stem: str, table: anndata.AnnData, *, named: bool) -> list[Path]:
    """Write one slide in one format."""
    path = out / file_name(stem, ENDINGS[name])
    shown = map_of(table)
    about = table.uns[UNS]
    diameter = float(about["spot_diameter_px"]) if "spot_diameter_px" in about else shown.spot_px
    if name == "geojson":
        few = table if named else table[:, best_genes(shown, min(FEW_GENES, len(shown.genes)))].copy()
        write_geojson(path, few, diameter)
        return [path]
    if name == "spatialdata":
        if path.is_dir():
            shutil.rmtree(path)
        write_spatialdata(path, table, diameter)
        return [path]
    write = write_csv if name == "csv" else write_parquet
    written = []
    for layer, rows in layer_tables(table).items():
        written.append(out / file_name(stem, f"{layer}{ENDINGS[name]}"))
        write(written[-1], rows)
    return written
