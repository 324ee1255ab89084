"""The data sets that can be downloaded, and what of them a request means.

What is known of each file of her2st is in ``her2st.csv``, in the order in which files are fetched:

- ``sha256`` is that of the file. It is given for spot tables and images of which a copy of the repository
  was at hand.
- ``content_sha256`` is that of what a gzipped count table holds. The file's own hash is left open, since
  the same table gzipped again is as good.
- ``bytes`` serves to show progress, and is not compared.
- Cells are empty where nothing is known. The names of most images are not known: ``listing`` has them.
- Labels ``J1`` of the repository are left out: no section has that name.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from mmap_st.errors import RequestError, did_you_mean

#: Kinds of files of a section, as `--what` takes them.
KINDS = ("counts", "spots", "images", "labels")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set; what is not known of it is None.

    Attributes
    ----------
    path
        Where it lies, below the data set's address and below the folder it is written to.
    section, kind
        Whose it is, and which of `KINDS`.
    size
        Bytes, to show progress.
    sha256, content_sha256, git_sha1
        SHA-256 of the file; of what is left when it is gunzipped; SHA-1 as git names the file.
    """

    path: str
    kind: str
    section: str | None = None
    size: int | None = None
    sha256: str | None = None
    content_sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A public data set.

    Attributes
    ----------
    name, about, page
        Its name here, what it is and from whom, and where people read about it.
    base
        Address that the files' paths are added to.
    registry
        A table of this package with the files, or None where `single` is all.
    single
        Files that are known without a table.
    listing
        Address of a list of the files in the form of GitHub's trees, for images whose names are not known.
    """

    name: str
    about: str
    page: str
    base: str
    registry: str | None = None
    single: tuple[RemoteFile, ...] = ()
    listing: str | None = None

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """All files whose names are known."""
        return self.single if self.registry is None else _read_registry(self.registry)

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in order; none where the data set is no set of sections."""
        return tuple(dict.fromkeys(file.section for file in self.files if file.section is not None))


_DATASETS = (
    Dataset(
        name="her2st",
        about="HER2-positive breast cancer, legacy ST, 36 sections (Andersson et al. 2021)",
        page="https://github.com/almaan/her2st",
        base="https://raw.githubusercontent.com/almaan/her2st/master/",
        registry="her2st.csv",
        listing="https://api.github.com/repos/almaan/her2st/git/trees/master?recursive=1",
    ),
    Dataset(
        name="cmu-small",
        about="a small whole-slide image, Aperio SVS at 0.5 um/px (OpenSlide's test data, CC0)",
        page="https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/",
        base="https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/",
        single=(
            RemoteFile(
                "CMU-1-Small-Region.svs",
                "images",
                size=1_938_955,
                sha256="ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
            ),
        ),
    ),
)
DATASETS = {dataset.name: dataset for dataset in _DATASETS}


def find_dataset(name: str) -> Dataset:
    """The data set of this name.

    Raises
    ------
    RequestError
        If there is none.
    """
    if name not in DATASETS:
        raise RequestError(
            f"There is no data set {name}{did_you_mean(name, DATASETS)}; there are {', '.join(DATASETS)}."
        )
    return DATASETS[name]


@dataclass(frozen=True)
class Choice:
    """What a request wants of a data set.

    Attributes
    ----------
    files
        Files whose names are known.
    unnamed
        Sections whose image is wanted, and under which name it lies is not known.
    """

    files: tuple[RemoteFile, ...]
    unnamed: tuple[str, ...] = ()


def choose(dataset: Dataset, sections: Sequence[str] | None, kinds: Sequence[str] | None) -> Choice:
    """Find the files of these sections and kinds; None means all of them.

    Raises
    ------
    RequestError
        If a section or a kind is unknown, or nothing is there of both.
    """
    if not dataset.sections:
        if sections is not None or kinds is not None:
            raise RequestError(f"{dataset.name} is one file: leave --sections and --what away.")
        return Choice(dataset.files)
    names = dataset.sections if sections is None else _known("section", sections, dataset.sections, dataset)
    wanted = KINDS if kinds is None else _known("kind of file", kinds, KINDS, dataset)
    found = tuple(file for file in dataset.files if file.section in names and file.kind in wanted)
    named = {file.section for file in dataset.files if file.kind == "images"}
    unnamed = tuple(name for name in names if "images" in wanted and name not in named)
    if not found and not unnamed:
        having = dict.fromkeys(file.section or "" for file in dataset.files if file.kind in wanted)
        raise RequestError(
            f"{dataset.name} has no {', '.join(wanted)} of {', '.join(names)};"
            f" it has them of {', '.join(having)}."
        )
    return Choice(found, unnamed)


def _known(what: str, words: Iterable[str], known: Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    by_lower = {name.lower(): name for name in known}
    found = []
    for word in words:
        name = by_lower.get(word.lower())
        if name is None:
            near = did_you_mean(word.upper() if what == "section" else word, known)
            raise RequestError(f"{dataset.name} has no {what} {word}{near}; it has {', '.join(known)}.")
        found.append(name)
    if not found:
        raise RequestError(f"No {what} is named; {dataset.name} has {', '.join(known)}.")
    return tuple(dict.fromkeys(found))


@cache
def _read_registry(name: str) -> tuple[RemoteFile, ...]:
    text = files("mmap_st.data.download").joinpath(name).read_text("utf-8")
    return tuple(
        RemoteFile(
            path=row["path"],
            kind=row["what"],
            section=row["section"],
            size=int(row["bytes"]) if row["bytes"] else None,
            sha256=row["sha256"] or None,
            content_sha256=row["content_sha256"] or None,
        )
        for row in csv.DictReader(text.splitlines())
    )
