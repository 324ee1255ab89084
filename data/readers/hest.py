"""HEST-1k's tree (Jaume et al. 2024), or the flat folder of one sample.

``st/ID.h5ad``, ``wsis/ID.tif``, ``metadata/ID.json`` and perhaps a table ``HEST_v*.csv``; or, flat, one
.h5ad, one image and one .json. Positions are pixels of the image. Micrometres per pixel are HEST's estimate
from the spots: the value that images embed is wrong by a factor of ten in some.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmap_st.data.cohort import CohortSlide, known_patient, known_text
from mmap_st.data.readers.annotated import positive
from mmap_st.data.readers.finding import find_images
from mmap_st.data.tables import read_table, some
from mmap_st.errors import CohortError, first_line
from mmap_st.files import absolute

_ESTIMATED_MPP = "pixel_size_um_estimated"
# Pictures that HEST puts next to a sample and that are not its slide.
_NOT_SLIDES = ("downscaled_fullres", "pixel_size_vis", "spatial_plot", "tissue_seg_vis", "patches_vis")


def find_slides(folder: Path) -> tuple[CohortSlide, ...]:
    """Every sample of HEST's tree, or the one sample of a flat folder.

    Raises
    ------
    CohortError
        If there is none, or a metadata file cannot be read.
    """
    if not folder.is_dir():
        raise CohortError(
            f"{folder} is not a folder; hest: needs the folder that holds st/ and wsis/, or a sample."
        )
    table = _metadata_table(folder)
    if not (folder / "st").is_dir():
        return (_flat_sample(folder, table),)
    images = find_images(folder / "wsis")
    slides = []
    for file in _samples(folder / "st"):
        name = file.stem
        about = {**table.get(name, {}), **_json(folder / "metadata" / f"{name}.json")}
        slides.append(_slide(name, file, images.get(name), about))
    return tuple(slides)


def _flat_sample(folder: Path, table: Mapping[str, Mapping[str, Any]]) -> CohortSlide:
    files = _samples(folder)
    if len(files) > 1:
        names = some([file.name for file in files])
        raise CohortError(f"{folder} holds {len(files)} samples ({names}) and no folder st/.")
    images = {name: path for name, path in find_images(folder).items() if name not in _NOT_SLIDES}
    if len(images) > 1:
        images = {name: path for name, path in images.items() if path.suffix.lower() in (".tif", ".tiff")}
    if len(images) > 1:
        raise CohortError(f"{folder} holds several images ({some(list(images))}); keep the one of the spots.")
    notes = sorted(folder.glob("*.json"))
    name = files[0].stem if files[0].stem != "aligned_adata" else absolute(folder).name
    about = {**table.get(name, {}), **(_json(notes[0]) if len(notes) == 1 else {})}
    return _slide(str(about.get("id") or name), files[0], next(iter(images.values()), None), about)


def _samples(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.h5ad"))
    if not files:
        raise CohortError(f"{folder} holds no .h5ad file.")
    return files


def _slide(name: str, file: Path, image: Path | None, about: Mapping[str, Any]) -> CohortSlide:
    patient, study = (known_text(about.get(key)) for key in ("patient", "dataset_title"))
    patient = known_patient(patient)
    if patient and study:  # "Patient 1" of another study is a different person
        patient = f"{study}: {patient}"
    mpp = positive(about.get(_ESTIMATED_MPP))
    return CohortSlide(
        slide=name,
        patient=patient,
        image=image,
        spots=file,
        counts=file,
        reader="hest",
        mpp=None if mpp is None else float(f"{mpp:.6g}"),
        pitch_um=positive(about.get("inter_spot_dist")),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CohortError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    return value if isinstance(value, dict) else {}


def _metadata_table(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of HEST's table by id; the newest table where there are several."""
    paths = sorted(folder.glob("HEST_v*.csv")) or sorted(folder.glob("metadata.csv"))
    if not paths:
        return {}
    table = read_table(paths[-1], CohortError, once=("id", "patient", "dataset_title", _ESTIMATED_MPP))
    if "id" not in table.columns:
        return {}
    return {str(row["id"]): {k: v for k, v in row.items() if v} for row in table.iter_rows(named=True)}
