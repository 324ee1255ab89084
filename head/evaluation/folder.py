"""The folder of an evaluation: who may write into it, the request, and what its numbers depend on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import mmap_st
from mmap_st.data import Fold
from mmap_st.errors import RequestError
from mmap_st.extract.engine import RayRequest
from mmap_st.extract.store import FeatureStore
from mmap_st.files import check_folder_out, sha256_of_file, sha256_of_json
from mmap_st.head.dataset import encoders_of
from mmap_st.head.interface import ALGORITHM_VERSION, settings_to_compare
from mmap_st.head.runs import FOLDS, METRICS, FitRequest, only_writer, writing
from mmap_st.head.scoring import read_json, write_json

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class EvaluateRequest:
    """A cross-validation of one head.

    Attributes
    ----------
    fit
        What each fold fits; its split and seed are the fold's.
    folds
        See `mmap_st.data.splits.make_folds`.
    seeds
        Each fold is fitted once with each.
    jobs
        Fits that run in parallel; None: as many as cores and memory allow.
    ablate
        Whether the head is evaluated without each of its parts too, see
        `mmap_st.head.evaluation.ablations`.
    variants
        Keys of the ablations to evaluate; None: all.
    ray
        Where Ray is, which then runs the fits, and how many at a time; None: this machine does.
    """

    fit: FitRequest
    folds: str = "patient"
    seeds: tuple[int, ...] = (0,)
    jobs: int | None = None
    ablate: bool = False
    variants: tuple[str, ...] | None = None
    ray: RayRequest | None = None


def request_contents(
    request: FitRequest,
    folds: Sequence[Fold],
    store: FeatureStore,
    mpps: Sequence[float],
    counts_sha256: str,
    patients: Mapping[str, str | None],
    gene_files: Sequence[Path] = (),
) -> dict[str, object]:
    """All that the numbers of an evaluation depend on, but seeds: those may be added later.

    Parameters
    ----------
    gene_files
        Files that the panel names.
    """
    encoders = encoders_of(request.encoder, store)
    complete = {name: [store.slide(name).complete(encoder) for encoder in encoders] for name in patients}
    embeddings = {
        name: [of_encoder[mpp].recipe_sha256 for of_encoder in found for mpp in mpps]
        for name, found in complete.items()
    }
    by_file = [f"file of sha256 {sha256_of_file(file)}" for file in gene_files]
    panel = request.panel
    if Path(panel) in gene_files:  # a file alone is known by what it holds, wherever it lies
        panel, by_file = by_file[0], []
    return {
        "format_version": _FORMAT_VERSION,
        "package_version": mmap_st.__version__,
        "heads_version": ALGORITHM_VERSION,
        "encoder": request.encoder,
        "head": request.method.name,
        **({"head_code_sha256": request.method.code} if request.method.code else {}),
        "settings": settings_to_compare(request.settings),
        "genes": ", ".join([panel, *by_file]),
        "gene_set": request.gene_set,
        "protocol": request.protocol.name,
        "magnifications": list(mpps),
        "folds": {fold.name: list(fold.split.test) for fold in folds},
        "patients": dict(patients),
        "embeddings_sha256": sha256_of_json(embeddings),
        "counts_sha256": counts_sha256,
    }


REQUEST = "request.json"
#: Key of a comparison's request.json.
COMPARISON = "comparison"
_LOCK = ".lock"


@contextmanager
def evaluation_folder(out: Path) -> Iterator[None]:
    """Hold the one right to write into an evaluation's folder.

    A folder that was made for it and stays empty is removed; one that was there before stays.

    Raises
    ------
    RequestError
        If it holds something else, another process writes into it, or it cannot be made.
    """
    check_folder_out(out)
    if out.is_dir() and not (out / REQUEST).is_file() and any(p.name != _LOCK for p in out.iterdir()):
        raise RequestError(f"--out {out} holds other things than an evaluation; name another folder.")
    is_new = not out.exists()
    refusal = f"{out} is being written by another evaluation; wait until it ends."
    try:
        with only_writer(out, out / _LOCK, refusal):
            yield
    finally:
        if is_new and out.is_dir():
            with suppress(OSError):  # it is not empty: there is a result, or another process is at work
                out.rmdir()


def check_kind(out: Path, *, comparison: bool) -> None:
    """Keep comparisons and evaluations of one head in separate folders.

    Raises
    ------
    RequestError
        If `out` holds the other kind.
    """
    if (out / REQUEST).is_file() and (COMPARISON in read_json(out / REQUEST)) != comparison:
        held, requested = (
            ("an evaluation", "a comparison") if comparison else ("a comparison", "an evaluation")
        )
        raise RequestError(f"--out {out} holds {held}, not {requested}; name another folder.")


def record_request(out: Path, request: Mapping[str, object]) -> None:
    """Write the request next to the folds, or compare it with the one that is there.

    Raises
    ------
    RequestError
        If there are folds of another request.
    """
    file = out / REQUEST
    if file.is_file() and any(out.glob(f"{FOLDS}/*/seed*/{METRICS}")):
        before = read_json(file)
        different = [key for key in {**before, **request} if before.get(key) != request.get(key)]
        if different:
            raise RequestError(
                f"{out} holds an evaluation of another request ({_shown(different, before, request)}); name"
                " another folder."
            )
        return
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, request)


def link_files(files: Sequence[Path], folder: Path) -> None:
    """Show predictions in one folder, by links where these can be made; others that were there are removed.

    Files that are not predictions stay.
    """
    folder.mkdir(exist_ok=True)
    draft = folder / ".unfinished"
    for file in files:
        draft.unlink(missing_ok=True)
        try:
            os.link(file, draft)
        except OSError:  # a file system without links
            shutil.copyfile(file, draft)
        draft.replace(folder / file.name)
        # Where both are links to the same file, replacing does nothing.
        draft.unlink(missing_ok=True)
    shown = {file.name for file in files}
    for other in list(folder.glob("*.h5ad")):
        if other.name not in shown:
            other.unlink()


def _shown(different: Sequence[str], before: Mapping[str, object], request: Mapping[str, object]) -> str:
    """Each difference, values where they are short enough to read."""
    parts = []
    for key in different:
        values = [str(before.get(key)), str(request.get(key))]
        short = all(len(value) <= 40 for value in values)
        parts.append(f"{key}: {values[0]}, now {values[1]}" if short else key)
    return "; ".join(parts)
