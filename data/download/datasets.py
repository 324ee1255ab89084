"""The data sets that can be downloaded, which files of them a request selects, and what became of each.

``her2st.csv`` has what is known about each file of her2st: the SHA-256 of spot tables and images of which a
copy was available; for gzipped counts the SHA-256 of the content, since the same table gzipped again is as
good. The names of most images are not known here: the repository's list of files has them.
"""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from mmap_st.errors import RequestError, did_you_mean
from mmap_st.files import cannot_be_written, number_of


@dataclass
class DownloadReport:
    """What became of each file, by its path below the folder.

    Attributes
    ----------
    fetched, kept
        Files that were fetched, and those that were there and are what they should be.
    replaced
        Files that were there and were not; what was there is now ``NAME.old``.
    failed
        Why a file is not there.
    received
        Bytes of the files that were fetched.
    seconds
        How long it took.
    """

    fetched: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    received: int = 0
    seconds: float = 0.0

    def set_aside(self, out: Path, path: str) -> None:
        """Rename a file that is not what it should be to ``NAME.old``."""
        (out / path).replace(out / f"{path}.old")
        self.replaced.append(path)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether there is no room left, on the disk or in the user's quota."""
    return isinstance(error, OSError) and number_of(error) in (errno.ENOSPC, errno.EDQUOT)


def disk_sentence(error: OSError, path: Path) -> str:
    """Why `path` cannot be written, and what to do."""
    if is_disk_full(error):
        return f"the disk of {path.parent} is full; make room and run the same command again."
    return f"{path} {cannot_be_written(error, 'use another place')}"


#: Kinds of files of a section, as `--what` takes them.
KINDS = ("counts", "spots", "images", "labels")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set; what is not known about it is None.

    Attributes
    ----------
    path
        Path below the data set's address, and below the folder that it is written to.
    kind, section
        Which of `KINDS` it is, and the section it belongs to.
    size
        Bytes, for the progress bar; not compared.
    sha256, content_sha256, git_sha1
        SHA-256 of the file; of its content after gunzip; SHA-1 of its git blob.
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
    """A public data set: its name here, what it is and by whom, and the page to read about it.

    Attributes
    ----------
    base
        Address that the files' paths are added to.
    files
        All files whose names are known; none for a data set that is downloaded by id.
    listing
        Address of a list of the files as GitHub gives it, for images whose names are not known.
    """

    name: str
    about: str
    page: str
    base: str = ""
    files: tuple[RemoteFile, ...] = ()
    listing: str | None = None

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in order; empty where the data set is not made of sections."""
        return tuple(dict.fromkeys(file.section for file in self.files if file.section is not None))


def _her2st_files() -> tuple[RemoteFile, ...]:
    text = files("mmap_st.data.download").joinpath("her2st.csv").read_text("utf-8")
    return tuple(
        RemoteFile(
            row["path"],
            row["what"],
            row["section"],
            int(row["bytes"]) if row["bytes"] else None,
            row["sha256"] or None,
            row["content_sha256"] or None,
        )
        for row in csv.DictReader(text.splitlines())
    )


_OPENSLIDE = "https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/"
_SAMPLE = RemoteFile(
    "CMU-1-Small-Region.svs",
    "images",
    size=1_938_955,
    sha256="ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
)
_ALL = (
    Dataset(
        "her2st",
        "HER2-positive breast cancer, legacy ST, 36 sections (Andersson et al. 2021)",
        "https://github.com/almaan/her2st",
        "https://raw.githubusercontent.com/almaan/her2st/master/",
        _her2st_files(),
        "https://api.github.com/repos/almaan/her2st/git/trees/master?recursive=1",
    ),
    Dataset(
        "hest",
        "HEST-1k, 1,200 samples of 26 organs, by id; terms to accept (Jaume et al. 2024)",
        "https://huggingface.co/datasets/MahmoodLab/hest",
    ),
    Dataset(
        "cmu-small",
        "a small whole-slide image, Aperio SVS at 0.5 um/px (OpenSlide's test data, CC0)",
        _OPENSLIDE,
        _OPENSLIDE,
        (_SAMPLE,),
    ),
)
DATASETS = {dataset.name: dataset for dataset in _ALL}


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


def choose(
    dataset: Dataset, sections: Sequence[str] | None, kinds: Sequence[str] | None
) -> tuple[list[RemoteFile], list[str]]:
    """Select the files of these sections and kinds; None means all of them.

    Returns
    -------
    tuple
        Files whose names are known, and sections whose image is wanted under a name that is not known.

    Raises
    ------
    RequestError
        If a section or a kind is unknown, or there is no file of both.
    """
    if not dataset.sections:
        if sections is not None or kinds is not None:
            raise RequestError(f"{dataset.name} has no sections: leave out --sections and --what.")
        return list(dataset.files), []
    names = dataset.sections
    if sections is not None:
        names = find_words("section", sections, names, dataset.name)
    wanted = KINDS if kinds is None else find_words("kind of file", kinds, KINDS, dataset.name)
    found = [file for file in dataset.files if file.section in names and file.kind in wanted]
    named = {file.section for file in dataset.files if file.kind == "images"}
    unnamed = [name for name in names if "images" in wanted and name not in named]
    if not found and not unnamed:
        having = dict.fromkeys(file.section or "" for file in dataset.files if file.kind in wanted)
        raise RequestError(
            f"{dataset.name} has no {', '.join(wanted)} of {', '.join(names)};"
            f" it has them of {', '.join(having)}."
        )
    return found, unnamed


def find_words(what: str, words: Iterable[str], known: Sequence[str], owner: str) -> tuple[str, ...]:
    """The words as `owner` spells them, each once; upper and lower case are not distinguished.

    Raises
    ------
    RequestError
        If one is unknown, or there are none.
    """
    by_lower = {name.lower(): name for name in known}
    listed = ", ".join(known) if len(known) <= 40 else f"{len(known)}, such as {', '.join(known[:3])}"
    found = []
    for word in words:
        if word.lower() not in by_lower:
            near = did_you_mean(word, known) or did_you_mean(word.upper(), known)
            raise RequestError(f"{owner} has no {what} {word}{near}; it has {listed}.")
        found.append(by_lower[word.lower()])
    if not found:
        raise RequestError(f"No {what} is named; {owner} has {listed}.")
    return tuple(dict.fromkeys(found))
