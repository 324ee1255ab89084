"""What is left in a store, and beside it, that no one needs: of dead writers, and of finished work."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import zarr

from mmap_st.errors import SlideLockedError, StoreError
from mmap_st.extract.store.integrity import chunk_keys
from mmap_st.extract.store.nodes import described, subgroup
from mmap_st.extract.store.reader import MAKING, FeatureStore, locks_folder, store_errors
from mmap_st.extract.store.soundness import DRAFT, PROTOTYPES
from mmap_st.extract.store.storage import is_draft, refuse_read_only
from mmap_st.extract.store.upkeep.sameness import made_from
from mmap_st.extract.store.writing import FAILED, SlideLock, check_unlocked, journals_folder
from mmap_st.files import InUseError, file_lock, file_name
from mmap_st.progress import ProgressCallback

_LOCK, _SIGNATURE, _ROWS = ".lock", ".holder.json", ".rows"
#: What a process writes for a moment while it takes a lock.
_MOMENTARY = re.compile(r"[0-9a-f]{32}(-\d+)?\.(draft|now)")
#: Seconds after which such a process has died.
_MOMENT_S = 60.0
_MPP = re.compile(r"\d+\.\d{4}")


@dataclass(frozen=True)
class Leftover:
    """A file or a folder that no one needs.

    Attributes
    ----------
    path, what
        Where it is, and what.
    bytes
        Its size, with all that is in it.
    """

    path: Path
    what: str
    bytes: int


@dataclass
class UpkeepReport:
    """What was removed, or would be.

    Attributes
    ----------
    leftovers
        In order of path.
    locked
        Of each slide that is being written, and was left alone, by whom.
    foreign
        What is in the store's folders and not the store's: it is left alone.
    failed
        Of each slide that is damaged, why nothing in it was looked for.
    """

    leftovers: list[Leftover] = field(default_factory=list)
    locked: dict[str, str] = field(default_factory=dict)
    foreign: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def remove_leftovers(
    store: FeatureStore,
    *,
    incomplete: bool = False,
    prototypes: bool = False,
    dry_run: bool = False,
    progress: ProgressCallback = lambda text: None,
) -> UpkeepReport:
    """Remove what no one needs: drafts of dead writers, journals of what is complete, free locks.

    Parameters
    ----------
    incomplete
        Also remove magnifications that are not complete, with their journals.
    prototypes
        Also remove prototypes of embeddings that are not there any more.
    dry_run
        Only look.

    Returns
    -------
    What was removed, or with `dry_run` would be; and what was left alone.

    Raises
    ------
    StoreError
        If the store is packed, or something cannot be removed.
    """
    refuse_read_only(store.path)
    report = UpkeepReport()
    with store_errors(store.folder):
        locks, journals = locks_folder(store.folder), journals_folder(store.folder)
        slides = {key: unquote(key) for key in _slide_keys(store, locks, journals)}
        for key, name in sorted(slides.items()):
            progress(f"looking at {name}")
            tidying = _Tidying(store, key, incomplete=incomplete, prototypes=prototypes)
            # Before it is taken, which makes and removes both.
            before = [
                *_single(locks / file_name(key, _LOCK), "lock that nobody holds"),
                *_single(locks / file_name(key, _SIGNATURE), "signature of a writer that died"),
            ]
            with ExitStack() as held:
                try:
                    if dry_run:
                        check_unlocked(store.folder, key)
                    else:
                        held.enter_context(SlideLock(store.folder, key))
                except SlideLockedError as error:
                    report.locked[name] = str(error)
                    continue
                if not dry_run:
                    held.callback((locks / file_name(key, _LOCK)).unlink, missing_ok=True)  # while it is held
                try:
                    found = list(tidying.leftovers())
                except StoreError as error:
                    report.failed[name] = str(error)
                    continue
                if not dry_run:
                    for leftover in found:
                        _remove(leftover.path)
                report.leftovers += [*before, *found]
                report.foreign += tidying.foreign
        report.leftovers += _beside_slides(store, slides.keys(), report, dry_run=dry_run)
        if not dry_run:
            _remove_empty(journals)
    report.leftovers.sort(key=lambda leftover: leftover.path)
    report.foreign.sort()
    return report


def _slide_keys(store: FeatureStore, locks: Path, journals: Path) -> set[str]:
    """Folders of slides, and names of those that only have a lock or a journal."""
    found = {entry.name for entry in _entries(store.folder) if _is_folder(entry)}
    keys = {key for key in found if _is_described(store, key)}
    keys |= {entry.name for entry in _entries(journals) if _is_folder(entry)}
    for entry in _entries(locks):
        for ending in (_LOCK, _SIGNATURE):
            if entry.name.endswith(ending) and entry.name != MAKING:
                keys.add(entry.name.removesuffix(ending))
    return keys


def _is_described(store: FeatureStore, key: str) -> bool:
    try:
        return described(store.root, key) is not None
    except StoreError:
        return True  # that it is damaged is said of the slide


class _Tidying:
    """Looks through one slide, which nobody is writing."""

    def __init__(self, store: FeatureStore, key: str, *, incomplete: bool, prototypes: bool) -> None:
        self._store, self._key = store, key
        self._incomplete, self._old_prototypes = incomplete, prototypes
        self._complete: set[tuple[str, str]] = set()
        self._damaged: set[tuple[str, str]] = set()
        self.foreign: list[Path] = []

    def leftovers(self) -> Iterator[Leftover]:
        """What no one needs of the slide; `foreign` are then the files that are not the store's."""
        slide = subgroup(self._store.root, self._key)
        if slide is not None:
            drafts = list[Leftover]()
            for name in self._folders(slide.path, drafts):
                group = subgroup(slide, name)
                if group is None:
                    self._is_foreign(f"{slide.path}/{name}")
                elif name == "spots":
                    yield from self._arrays(group)
                else:
                    yield from self._encoder(group)
            yield from drafts
        yield from self._journals()

    def _encoder(self, encoder: zarr.Group) -> Iterator[Leftover]:
        complete, drafts = {}, list[Leftover]()
        folders = self._folders(encoder.path, drafts)
        yield from drafts
        for name in folders:
            if name == PROTOTYPES:
                continue
            place = (encoder.basename, name)
            try:
                group = subgroup(encoder, name)
            except StoreError:
                self._damaged.add(place)  # what uses it says so, and what repairs it goes on from it
                continue
            if group is not None and group.attrs.get("complete") is True:
                complete[name] = str(group.attrs.get("recipe_sha256"))
                self._complete.add(place)
                yield from self._arrays(group)
            elif _MPP.fullmatch(name) is None:
                self._is_foreign(f"{encoder.path}/{name}")
            elif self._incomplete:
                yield self._whole(f"{encoder.path}/{name}", "unfinished magnification")
            elif group is not None:
                yield from self._arrays(group)
        if PROTOTYPES in folders and (sets := subgroup(encoder, PROTOTYPES)) is not None:
            yield from self._prototypes(sets, complete)

    def _prototypes(self, sets: zarr.Group, complete: Mapping[str, str]) -> Iterator[Leftover]:
        drafts = list[Leftover]()
        folders = self._folders(sets.path, drafts)
        yield from drafts
        for name in folders:
            group = subgroup(sets, name)
            if group is None or group.attrs.get("complete") is not True:
                yield self._whole(f"{sets.path}/{name}", "unfinished prototypes")
            elif self._old_prototypes and not self._damaged and not made_from(group, complete):
                yield self._whole(f"{sets.path}/{name}", "prototypes of other embeddings")
            else:
                yield from self._arrays(group)

    def _arrays(self, group: zarr.Group) -> Iterator[Leftover]:
        """Drafts in a group of arrays."""
        drafts = list[Leftover]()
        for name in self._folders(group.path, drafts):
            key = f"{group.path}/{name}"
            if name.endswith(DRAFT):
                yield self._whole(key, "draft of a writer that died")
            elif (node := described(group, name)) is None or node["node_type"] != "array":
                self._is_foreign(key)
            else:
                yield from self._chunks(group, name)
        yield from drafts

    def _chunks(self, group: zarr.Group, name: str) -> Iterator[Leftover]:
        folder = self._store.folder / group.path / name
        known = {"zarr.json", *chunk_keys(group, name)}
        for file in _files_below(folder):
            if is_draft(file):
                yield from _single(file, "draft of a writer that died")
            elif file.relative_to(folder).as_posix() not in known:
                self.foreign.append(file)

    def _journals(self) -> Iterator[Leftover]:
        folder = journals_folder(self._store.folder) / self._key
        for file in _files_below(folder):
            place = tuple(file.relative_to(folder).as_posix().removesuffix(_ROWS).split("/"))
            if is_draft(file):
                yield from _single(file, "draft of a writer that died")
            elif not file.name.endswith(_ROWS) or len(place) != 2 or file.is_symlink():
                self.foreign.append(file)
            elif place in self._complete:
                yield from _single(file, "journal of a complete magnification")
            elif self._incomplete and place not in self._damaged:
                yield from _single(file, "journal of an unfinished magnification")

    def _folders(self, key: str, drafts: list[Leftover]) -> list[str]:
        """Names of the folders in a group's; its drafts are added to `drafts`."""
        found = []
        for entry in _entries(self._store.folder / key):
            if _is_folder(entry):
                found.append(entry.name)
            elif is_draft(Path(entry.path)):
                drafts += _single(Path(entry.path), "draft of a writer that died")
            elif entry.name != "zarr.json":
                self.foreign.append(Path(entry.path))
        return sorted(found)

    def _is_foreign(self, key: str) -> None:
        self.foreign += _files_below(self._store.folder / key)

    def _whole(self, key: str, what: str) -> Leftover:
        folder = self._store.folder / key
        return Leftover(folder, what, sum(os.lstat(file).st_size for file in _files_below(folder)))


def _beside_slides(
    store: FeatureStore, slides: Set[str], report: UpkeepReport, *, dry_run: bool
) -> Iterator[Leftover]:
    """What is left of the store as a whole."""
    for entry in _entries(store.folder):
        path = Path(entry.path)
        if _is_folder(entry):
            report.foreign += [] if entry.name in slides else _files_below(path)
        elif is_draft(path):
            # An earlier version drafts the root's description whenever it writes a slide.
            if not report.locked:
                yield from _taken(path, "draft of a writer that died", dry_run)
        elif entry.name != "zarr.json":
            report.foreign.append(path)
    report.foreign += [Path(e.path) for e in _entries(journals_folder(store.folder)) if not _is_folder(e)]
    for entry in _entries(locks_folder(store.folder)):
        path = Path(entry.path)
        if entry.name == MAKING:
            try:
                with file_lock(path):
                    yield from _taken(path, "lock that nobody holds", dry_run)
            except InUseError:
                continue
        elif _MOMENTARY.fullmatch(entry.name):
            if time.time() - path.stat().st_mtime > _MOMENT_S:
                yield from _taken(path, "draft of a writer that died", dry_run)
        elif not entry.name.endswith((_LOCK, _SIGNATURE, FAILED)):
            report.foreign.append(path)


def _taken(path: Path, what: str, dry_run: bool) -> list[Leftover]:
    found = _single(path, what)
    if found and not dry_run:
        _remove(path)
    return found


def _single(path: Path, what: str) -> list[Leftover]:
    """A file, where it is one and there."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return []
    return [Leftover(path, what, status.st_size)] if stat.S_ISREG(status.st_mode) else []


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where there is none, or a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _files_below(folder: Path) -> Iterator[Path]:
    """All in a folder that is not one itself, links too, which are not followed."""
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _files_below(Path(entry.path))
        else:
            yield Path(entry.path)


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    # What describes it goes first: a process that dies in between leaves nothing that passes for whole.
    (path / "zarr.json").unlink(missing_ok=True)
    shutil.rmtree(path)


def _remove_empty(folder: Path) -> None:
    """Remove folders in which nothing is; whoever writes into one meanwhile makes it again."""
    for place, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(place)
