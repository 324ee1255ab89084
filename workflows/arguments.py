"""What the public functions take: objects or paths, dictionaries or the words of a command line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from mmap_st.data import VALUES, Cohort, with_patients
from mmap_st.data.readers import CohortSource, as_cohort, open_cohort, rebinned
from mmap_st.errors import RequestError
from mmap_st.extract.encoders import EncoderSpec, encoder_spec
from mmap_st.extract.store import FeatureStore, refuse_read_only
from mmap_st.extract.windows import parse_magnifications
from mmap_st.files import check_folder_out
from mmap_st.plugins import split_reference
from mmap_st.urls import Place, Url

#: An open feature store, or the path or URL of one.
StoreLike: TypeAlias = FeatureStore | str | Path
#: An encoder by name, or its spec.
EncoderLike: TypeAlias = str | EncoderSpec
#: One encoder, or several in one head: ``"a,b"``, or a list.
Encoders: TypeAlias = EncoderLike | Sequence[EncoderLike]
#: Slides: ``{"slide": ["C2", "C3"]}``, ``{"patient": "B"}``, ``"slide=C2,C3"``, or a file of names.
Where: TypeAlias = str | Path | Mapping[str, str | Sequence[str]]
#: ``[40, 20]``, ``["40x", "20x"]``, ``"40,20"`` or one number.
Scales: TypeAlias = str | float | Sequence[float | str]
#: Settings of a head by name.
Settings: TypeAlias = Mapping[str, float | int | str | bool | None]
#: A panel: ``hvg:250,ERBB2``, parts of which are rules, genes, or files of genes; or a list of genes.
Genes: TypeAlias = str | Path | Sequence[str]
#: Names: a list, or ``"a,b"``.
Names: TypeAlias = str | Sequence[str]


def open_store(store: StoreLike) -> FeatureStore:
    """The store itself, or the one at a path."""
    return store if isinstance(store, FeatureStore) else FeatureStore(store)


def check_store_out(path: Place) -> None:
    """Refuse a new store where none can be made, before the encoder is built and slides are opened.

    Raises
    ------
    RequestError
        Saying why.
    """
    if isinstance(path, Url):
        return  # the server says so, when the store is made
    refuse_read_only(path)
    # One that exists may be complete already: then nothing has to be written.
    if not os.path.lexists(path):
        check_folder_out(path, "STORE")


def spec_of(encoder: EncoderLike) -> EncoderSpec:
    """The spec itself, or that of a name."""
    return encoder if isinstance(encoder, EncoderSpec) else encoder_spec(encoder)


def encoder_name(encoder: EncoderLike) -> str:
    """What a store calls an encoder: one of a file has the name that its spec says."""
    if isinstance(encoder, EncoderSpec):
        return encoder.name
    return encoder_spec(encoder).name if ".py:" in encoder else encoder


def encoder_names(encoder: Encoders) -> str:
    """One encoder or several, as a store calls each, with commas between them.

    Raises
    ------
    RequestError
        If there are none.
    """
    if isinstance(encoder, EncoderSpec) or (isinstance(encoder, str) and not _names_files(encoder)):
        return encoder_name(encoder)
    names = encoder.split(",") if isinstance(encoder, str) else encoder
    if not names:
        raise RequestError("--encoder names nothing; give the name of an encoder, or several.")
    return ",".join(encoder_name(name.strip() if isinstance(name, str) else name) for name in names)


def encoders_by_name(encoder: Encoders | None) -> dict[str, EncoderSpec]:
    """Specs of one encoder or several, by what a store calls each; none for None."""
    if encoder is None:
        return {}
    several = encoder.split(",") if isinstance(encoder, str) and _names_files(encoder) else encoder
    items = [several] if isinstance(several, str | EncoderSpec) else several
    specs = [spec_of(item.strip() if isinstance(item, str) else item) for item in items]
    return {spec.name: spec for spec in specs}


def _names_files(text: str) -> bool:
    """Whether these are several encoders of which one is a file's: commas may be part of a file's path."""
    path, function = split_reference(text)
    one_file = path.is_file() and "," not in function
    return "," in text and ".py:" in text and not one_file


def mpps_of(magnifications: Scales | None, mpp: Scales | None) -> tuple[float, ...] | None:
    """Micrometres per pixel, finest first; None where neither is given.

    Raises
    ------
    RequestError
        If both are given, or a value is not a positive number.
    """
    return parse_magnifications(_joined(magnifications), _joined(mpp))


def words_of(names: Names, argument: str) -> list[str]:
    """Names as a list.

    Raises
    ------
    RequestError
        If there are none.
    """
    words = names.split(",") if isinstance(names, str) else list(names)
    words = [word.strip() for word in words if word.strip()]
    if not words:
        raise RequestError(f"{argument} {names!r} names nothing; give names separated by commas.")
    return words


def pairs_of(settings: Settings | None, prefix: str = "") -> list[str]:
    """Settings as the command's ``KEY=VALUE``."""
    return [f"{prefix}{key}={'none' if value is None else value}" for key, value in (settings or {}).items()]


@contextmanager
def panel_text(genes: Genes | None, folder: Path | None = None) -> Iterator[str | None]:
    """A panel as the command takes it; a list of genes is a file for as long as the block runs.

    Parameters
    ----------
    folder
        Where that file may be; None: where this machine keeps such files.
    """
    if genes is None or isinstance(genes, str | Path):
        yield None if genes is None else str(genes)
        return
    with TemporaryDirectory(dir=folder, prefix=".mmap-") as made:
        file = Path(made) / "genes.txt"
        file.write_text("\n".join(genes), "utf-8")
        yield str(file)


def values_of(values: str | None) -> str | None:
    """What count tables hold, checked; None for counts, the default.

    Raises
    ------
    RequestError
        If it is not a word for that.
    """
    if values is not None and values not in VALUES:
        raise RequestError(f"--values {values}: give {' or '.join(VALUES)}.")
    return None if values == "counts" else values


def _joined(scales: Scales | None) -> str | None:
    if scales is None or isinstance(scales, str):
        return scales
    return ",".join(str(scale) for scale in ([scales] if isinstance(scales, float | int) else scales))


def _paths(image: str | Path | Mapping[str, str | Path] | None) -> Path | dict[str, Path] | None:
    if isinstance(image, Mapping):
        return {name: Path(path) for name, path in image.items()}
    return None if image is None else Path(image)


def read_cohort(
    source: CohortSource,
    *,
    image: str | Path | Mapping[str, str | Path] | None = None,
    values: str | None = None,
    bin_um: float | None = None,
    patient: str | Mapping[str, str] | None = None,
) -> Cohort:
    """Read a cohort: a table of slides, one row per slide.

    Parameters
    ----------
    source
        A cohort file (.csv or .parquet), ``"reader:path"`` for a folder in a public layout such as
        ``"her2st:her2st"`` or ``"visium:outs"``, or a polars or pandas table with the columns of a cohort
        file: ``slide``, and where they are known ``patient``, ``image``, ``spots``, ``counts``, ``reader``
        and ``mpp``. A cohort file may be a URL, and images and tables in one may be.
        Relative paths are relative to the cohort file; of a table, to the working directory.
    image
        The image that the spots were placed on, where it is somewhere else; a folder of images that are
        named as the slides are; or an image for each of some slides: ``{"C2": "scans/17.svs"}``.
    values
        What count tables hold: ``counts``, or ``lognorm`` for values that are log-normalised on purpose.
    bin_um
        Side in micrometres of the squares that a Xenium section's transcripts (or cells) or the bins of
        Visium HD are joined to; each square is a spot. None: 100 for Xenium, and bins as they are.
    patient
        The patient of slides whose files do not name one; or the patient of each of some slides, whatever
        their files say: ``{"C2": "P7"}``.

    Returns
    -------
    The slides in the order of the table; ``cohort["C2"]`` is one row.

    Raises
    ------
    CohortError
        If there is no such file, reader or folder, it holds no slides, or a row cannot be used.
    StoreError
        If a server does not give it.

    Examples
    --------
    >>> cohort = mm.read_cohort(f"her2st:{her2st}")
    >>> cohort.names
    ('A1', 'B1', 'C1')
    >>> cohort["A1"].patient
    'A'
    """
    cohort = _found(source, image, values_of(values), bin_um)
    return cohort if patient is None else with_patients(cohort, patient)


def _found(
    source: CohortSource,
    image: str | Path | Mapping[str, str | Path] | None,
    values: str | None,
    bin_um: float | None,
) -> Cohort:
    if isinstance(source, str | Path):
        images = _paths(image)
        return open_cohort(str(source), image=images, values=values, bin_um=bin_um)
    if image is not None:
        raise RequestError("image is for a cohort that is read from a path; this one has its own images.")
    cohort = as_cohort(source)
    if bin_um is not None:
        cohort = rebinned(cohort, bin_um)
    if values is None:
        return cohort
    return replace(cohort, slides=tuple(replace(s, values=values) if s.counts else s for s in cohort.slides))
