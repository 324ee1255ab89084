"""Predictions as AnnData files that other tools read.

A folder of predictions is of one head only, and written by one process at a time.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mmap_st.data import NORMALISATIONS
from mmap_st.errors import RequestError, WriteError
from mmap_st.extract.store import encode_name
from mmap_st.files import cannot_be_written, check_folder_out, file_name, refuse_clashes, replacing
from mmap_st.head.attending import Attention
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.runs.run_folder import only_writer
from mmap_st.head.runs.spatial_metadata import SpatialMetadata, library_name
from mmap_st.head.runs.suitability import Suitability
from mmap_st.head.scoring import Calibration, GeneTrust, Spread

if TYPE_CHECKING:
    import anndata


#: Key in an .h5ad of what mmap writes there, and in it of the hash of the head's weights.
UNS, HEAD_SHA256 = "mmap", "head_sha256"
#: What intervals and the judgement of genes rest on.
CALIBRATION = "calibration"
#: Whether the slide is like those of training.
DOMAIN = "domain"
#: Its layers of measured values and of standard deviations, and its column of intervals.
MEASURED, SPREAD = "measured", "spread"
INTERVAL = "interval_90"
#: Its attention over the slide's prototypes, and whose embeddings these are of.
ATTENTION, ATTENTION_OF = "attention", "attention_of"
_COMPRESSED: Mapping[str, Any] = {"compression": "gzip"}
# How anndata marks a file, and an array.
_ANNDATA = {"encoding-type": "anndata", "encoding-version": "0.1.0"}
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
# Values of one chunk of a file: 1 MiB.
_CHUNK_VALUES = 1 << 18


@contextmanager
def prediction_folder(
    out: Path, head_sha256: str, files: Sequence[Path], *, overwrite: bool = False
) -> Iterator[None]:
    """Hold the one right to write a head's predictions into a folder.

    A head may add slides to its own predictions, and replace them. Predictions of another head (or of a
    version that did not record it) are refused, so that a folder never mixes two.

    Parameters
    ----------
    out
        The folder; made where it is missing.
    head_sha256
        Of the head's weights.
    files
        What will be written, as far as it is known.
    overwrite
        Whether predictions of another head are replaced. Those that were not replaced are removed in the
        end.

    Raises
    ------
    RequestError
        If `out` is a file or a feature store, is being written by another process, holds predictions of
        another head, or a file that is not a prediction is in the way.
    """
    _check_out(out)
    is_new = not out.exists()
    refusal = f"--out {out} is being written by another process; wait until it ends, or name another folder."
    try:
        with only_writer(out, out / ".lock", refusal):
            others = _of_other_heads(out, head_sha256, files)
            if others and not overwrite:
                raise RequestError(
                    f"--out {out} holds predictions that this head did not make (such as {others[0].name});"
                    " name another folder, or give --overwrite to replace them."
                )
            yield
            for file in others:
                if _head_of(file) != head_sha256:
                    file.unlink(missing_ok=True)
    finally:
        if is_new and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def check_prediction_folder(
    out: Path, head_sha256: str, slides: Iterable[str], *, overwrite: bool = False
) -> None:
    """Refuse a folder that a head's predictions cannot be written into, before hours of work.

    Raises
    ------
    RequestError
        As of `prediction_folder`.
    """
    files = [prediction_file(out, name) for name in slides]
    refuse_clashes((file.name for file in files), out)
    _check_out(out)
    if out.exists() and _of_other_heads(out, head_sha256, files) and not overwrite:
        with prediction_folder(out, head_sha256, files):
            pass


def _check_out(out: Path) -> None:
    check_folder_out(out)
    if (out / "zarr.json").is_file():
        raise RequestError(f"--out {out} is a feature store; name another folder for the predictions.")


def _of_other_heads(out: Path, head_sha256: str, files: Sequence[Path]) -> list[Path]:
    """Predictions in a folder that another head made."""
    written = set(files)
    found = []
    for file in sorted(out.glob("*.h5ad")):
        head = _head_of(file)
        if head is None and file in written:
            raise RequestError(f"{file} is not a prediction, and would be replaced; name another folder.")
        if head is not None and head != head_sha256:
            found.append(file)
    return found


def _head_of(file: Path) -> str | None:
    """The hash of the head that made a prediction; empty if it is not recorded, None if it is not one."""
    try:
        with h5py.File(file) as opened:
            about = opened["uns"][UNS]
            return about[HEAD_SHA256].asstr()[()] if HEAD_SHA256 in about else ""
    except (OSError, KeyError, ValueError, TypeError):
        return None


def prediction_file(folder: Path, slide: str) -> Path:
    """Where a slide's prediction lies: ``<slide>.h5ad``, the name percent-encoded as in a store."""
    return folder / file_name(encode_name(slide), ".h5ad")


def prediction_table(
    slide: HeadSlide,
    predicted: NDArray[np.float32] | None,
    genes: Sequence[str],
    about: Mapping[str, object],
    spread: Spread | None = None,
    trust: GeneTrust | None = None,
    suitability: Suitability | None = None,
    spatial: SpatialMetadata | None = None,
    gene_ids: Sequence[str] | None = None,
    attention: Attention | None = None,
) -> anndata.AnnData:
    """The prediction of one slide as a table that other tools read.

    Parameters
    ----------
    slide
        Its spots become ``obs_names``, their centres ``obsm["spatial"]`` (level-0 px), and its targets, if
        it has them, ``layers["measured"]``.
    predicted
        (n, g) on the targets' scale; NaN for spots that are not valid. None: values are written block by
        block, see `filling`, and the table has neither X nor layers.
    genes
        ``var_names``.
    about
        Written to ``uns["mmap"]``; holds at least ``normalisation``.
    spread
        Of the predictions: ``layers["spread"]`` is the standard deviation of each one's error, and X plus
        and minus ``var["interval_90"]`` times it holds the truth 9 times in 10. None: neither.
    trust
        Which genes to trust: columns of ``var``, see `GeneTrust.columns`. None: none.
    suitability
        Whether the slide is like those of training: ``uns["mmap"]["domain"]``; and how far each spot lies
        from them, ``obs["distance"]`` and ``obs["distance_percentile"]``; ``obs["tissue"]`` and
        ``obs["on_tissue"]``. None: none of these.
    spatial
        Where its spots lie: ``uns["spatial"]`` with the slide's thumbnail, as scanpy and squidpy draw it,
        ``obs["array_row"]``, ``obs["array_col"]``, ``obs["in_bounds"]`` and, in ``uns["mmap"]``, the width
        of a spot. None: none of these.
    gene_ids
        ``var["gene_ids"]``; None: not known.
    attention
        Of the spots over the slide's prototypes: ``obsm["attention"]``. None: none.
    """
    import anndata
    import pandas as pd

    table = anndata.AnnData(
        X=None if predicted is None else np.asarray(predicted, np.float32),
        obs=pd.DataFrame({"valid": slide.valid}, index=pd.Index(slide.ids, dtype=object)),
        var=pd.DataFrame(index=pd.Index(list(genes), dtype=object)),
        obsm={"spatial": slide.xy},
        layers={MEASURED: slide.target.dense()} if predicted is not None and slide.target is not None else {},
    )
    if gene_ids is not None:
        table.var["gene_ids"] = list(gene_ids)
    if attention is not None:
        table.obsm[ATTENTION] = attention.weights
    if spatial is not None:
        table.obs["in_bounds"] = spatial.in_bounds
        if spatial.array is not None:
            table.obs["array_row"], table.obs["array_col"] = spatial.array.T
        if (library := spatial.library()) is not None:
            table.uns["spatial"] = {library_name(slide.name): library}
    if spread is not None:
        if predicted is not None:
            strangeness = None if suitability is None else suitability.strangeness
            distance = None if strangeness is None else strangeness.spots
            table.layers[SPREAD] = spread.of(np.asarray(predicted, np.float32), distance=distance)
        table.var[INTERVAL] = spread.factor
    if trust is not None:
        for column, values in trust.columns().items():
            table.var[column] = values
    known = {key: value for key, value in about.items() if value is not None}
    if suitability is not None:
        known[DOMAIN] = suitability.about()
        table.obs["tissue"] = suitability.tissue
        table.obs["on_tissue"] = suitability.on_tissue
        if suitability.strangeness is not None:
            table.obs["distance"] = suitability.strangeness.spots
            table.obs["distance_percentile"] = suitability.strangeness.spot_percentile
    if spatial is not None:
        known["spot_diameter_px"] = spatial.diameter_px
    calibration = known.get(CALIBRATION)
    if isinstance(calibration, Calibration):
        known[CALIBRATION] = {**vars(calibration), "condition": calibration.condition}
    table.uns[UNS] = {
        "slide": slide.name,
        "units": NORMALISATIONS[str(about["normalisation"])].units,
        "spatial_units": "level-0 pixels of the image, x to the right, y down",
        **known,
    }
    return table


def write_prediction(path: Path, table: anndata.AnnData) -> None:
    """Write the prediction of one slide.

    Raises
    ------
    WriteError
        If the disk is full, or may not be written to.
    """
    from anndata.io import write_elem

    with _written(path) as draft, _Unfailing(draft, "w+") as disk:
        with h5py.File(disk, "w") as file:
            _write_all_but_x(file, table)
            write_elem(file, "X", table.X, dataset_kwargs=_COMPRESSED)
        disk.check()


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """The draft of a prediction, see `replacing`; what goes wrong on the disk is one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of anndata's own writers
        try:
            with replacing(path) as draft:
                yield draft
        except OSError as error:
            raise WriteError(f"{path} {cannot_be_written(error, 'use another place')}") from error


@dataclass(frozen=True)
class FilledFile:
    """The prediction of one slide while it is written, see `filling`."""

    file: h5py.File
    disk: _Unfailing

    def write(self, rows: slice, predicted: NDArray[np.float32], **layers: NDArray[np.float32]) -> None:
        """Write X and the layers of some spots: (k, g) each."""
        self.file["X"][rows] = predicted
        for name, values in layers.items():
            self.file["layers"][name][rows] = values
        self.disk.check()

    def predicted(self, rows: slice) -> NDArray[np.float32]:
        """(k, g) of X that were written."""
        values: NDArray[np.float32] = self.file["X"][rows]
        return values

    def add(self, place: str, name: str, value: object) -> None:
        """Add what is known only in the end, such as ``uns/mmap`` and ``scores``."""
        from anndata.io import write_elem

        write_elem(self.file[place], name, value, dataset_kwargs=_COMPRESSED)

    def add_columns(self, columns: Mapping[str, NDArray[np.float32]]) -> None:
        """Add columns of numbers (n,) to ``obs``."""
        for name, values in columns.items():
            self.add("obs", name, values)
        marks = self.file["obs"].attrs
        marks["column-order"] = np.array([*marks["column-order"], *columns], h5py.string_dtype())


@contextmanager
def filling(
    path: Path, table: anndata.AnnData, layers: Sequence[str], rows_of_block: int
) -> Iterator[FilledFile]:
    """Write the prediction of one slide block by block; the file is there whole or not at all.

    To whoever reads it, it is as `write_prediction` would have written it.

    Parameters
    ----------
    table
        All but X and its layers, which are filled within.
    layers
        Their names.
    rows_of_block
        Spots that are written at a time.

    Raises
    ------
    WriteError
        If the disk is full, or may not be written to.
    """
    spots, genes = table.shape
    rows = max(1, min(spots, rows_of_block))
    # A block is whole chunks, which are written without being read again.
    chunk = rows, max(1, min(genes, _CHUNK_VALUES // rows))
    with _written(path) as draft, _Unfailing(draft, "w+") as disk:
        with h5py.File(disk, "w") as file:
            _write_all_but_x(file, table)
            for name in ("X", *(f"layers/{layer}" for layer in layers)):
                values = file.create_dataset(name, (spots, genes), np.float32, chunks=chunk, **_COMPRESSED)
                values.attrs.update(_ARRAY)
            disk.check()
            yield FilledFile(file, disk)
        disk.check()


def _write_all_but_x(file: h5py.File, table: anndata.AnnData) -> None:
    """Write a table as anndata does."""
    from anndata.io import write_elem

    table.strings_to_categoricals()
    file.attrs.update(_ANNDATA)
    for part in ("obs", "var"):
        write_elem(file, part, getattr(table, part), dataset_kwargs=_COMPRESSED)
    for part in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
        write_elem(file, part, dict(getattr(table, part)), dataset_kwargs=_COMPRESSED)


class _Unfailing(io.FileIO):
    """A file that takes whatever is written and remembers what went wrong.

    HDF5 does not get over a write that fails: what is open cannot be closed then, and it crashes in the end.
    """

    _failure: OSError | None = None

    def check(self) -> None:
        """Raise what went wrong first."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        with self._noting():
            while len(left) and self._failure is None:
                left = left[super().write(left) or 0 :]
        return size

    def truncate(self, size: int | None = None) -> int:
        with self._noting():
            if self._failure is None:
                super().truncate(size)
        return self.tell() if size is None else size

    def readinto(self, buffer: Any) -> int:
        # What could not be written is missing.
        view = memoryview(buffer).cast("B")
        found = super().readinto(view) or 0
        view[found:] = bytes(len(view) - found)
        return len(view)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failure = error


def read_prediction(path: Path) -> anndata.AnnData:
    """Read one slide."""
    import anndata

    return anndata.read_h5ad(path)
