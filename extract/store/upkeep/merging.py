"""Several feature stores in one: files are copied as they are, and the copies compared with their digests.

A magnification is there or not: what describes it is written last, so that a process that is killed leaves
nothing that passes for one, and the same command goes on with the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype

from mmap_st.errors import DamagedSlideError, SlideError, SlideRecipeError, StoreError, in_sentences
from mmap_st.extract.store.magnification import Magnification, magnification_in
from mmap_st.extract.store.nodes import described, folder_of, group_at, read_array, subgroup
from mmap_st.extract.store.presence import present
from mmap_st.extract.store.reader import FeatureStore, store_errors
from mmap_st.extract.store.recipe import (
    check_slide_names,
    differences,
    encode_name,
)
from mmap_st.extract.store.soundness import PROTOTYPES, SoundParts, files_of, sound_parts, verify_prototypes
from mmap_st.extract.store.storage import StoreFolder, drafts_below, refuse_read_only
from mmap_st.extract.store.stored_slide import SPOT_ARRAYS, SlideInfo, StoredSlide
from mmap_st.extract.store.upkeep.sameness import (
    StoredRuns,
    called,
    fingerprint,
    is_same,
    is_whole,
    made_from,
)
from mmap_st.extract.store.writing import SlideLock, journal_path
from mmap_st.extract.windows import mpp_key
from mmap_st.files import check_folder_out
from mmap_st.progress import ProgressCallback


@dataclass
class MergeReport:
    """What was merged.

    Attributes
    ----------
    copied, there
        Of each slide, how many magnifications were copied, and how many of the same content were there.
    left_out
        Of each slide, what is not complete in a store that it is from.
    failed
        Why something of a slide, or all of it, could not be merged.
    """

    copied: dict[str, int] = field(default_factory=dict)
    there: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def merge_into(
    stores: Sequence[FeatureStore], out: Path, progress: ProgressCallback = lambda text: None
) -> MergeReport:
    """Copy the slides of several stores into one; the same call goes on where one was stopped.

    Parameters
    ----------
    stores
        Folders or packed ones. Of a slide that several have, all that they have is merged.
    out
        Folder of the store that they are merged into; made where there is none.

    Returns
    -------
    What was copied; slides with something that could not be are in it, with their reasons.

    Raises
    ------
    RequestError
        If something is no store, or `out` cannot be written.
    """
    refuse_read_only(out)
    check_folder_out(out)
    for store in stores:
        if not store.read_only and store.folder.resolve() == out.resolve():
            raise StoreError(f"--out {out} is one of the stores to be merged; name another folder.")
    names = list(dict.fromkeys(name for store in stores for name in store.slides))
    if not names:
        raise StoreError(f"{', '.join(str(store.path) for store in stores)}: there are no slides to merge.")
    check_slide_names(out, names)
    target = FeatureStore.create(out)
    report, runs = MergeReport(), StoredRuns(target)
    for name in names:
        progress(f"merging {name}")
        with present(out):
            _merge_slide(name, [store for store in stores if store.has_slide(name)], target, runs, report)
    return report


def _merge_slide(
    name: str, sources: Sequence[FeatureStore], target: FeatureStore, runs: StoredRuns, report: MergeReport
) -> None:
    problems = []
    try:
        with SlideLock(target.folder, encode_name(name)) as lock, store_errors(target.path):
            for leftover in drafts_below(target.folder / encode_name(name)):
                leftover.unlink(missing_ok=True)  # of a writer that was killed
            for source in sources:
                merging = _Merging(name, source, target, runs, report, lock.check)
                try:
                    problems += merging.merge()
                except (SlideError, StoreError) as error:
                    if _of_the_disk(error):
                        raise
                    problems.append(str(error))
    except (SlideError, StoreError) as error:
        if _of_the_disk(error):
            raise
        problems.append(str(error))
    if problems:
        report.failed[name] = in_sentences(problems)


def _of_the_disk(error: Exception) -> bool:
    """Whether this would happen to every other slide too: the disk is full, or fails."""
    return isinstance(error.__cause__, OSError) and not isinstance(error, SlideError)


class _Merging:
    """One slide of one store, on its way into another."""

    def __init__(
        self,
        name: str,
        source: FeatureStore,
        target: FeatureStore,
        runs: StoredRuns,
        report: MergeReport,
        check_lock: Callable[[], None],
    ) -> None:
        self._name, self._source, self._target = name, source, target
        self._runs, self._report, self._check_lock = runs, report, check_lock

    def merge(self) -> list[str]:
        """Copy what is not there; returns why something could not be."""
        with store_errors(self._source.path):
            slide = self._source.slide(self._name)
            if not slide.has_spots():
                self._leave_out("its spots")
                return []
            found, broken = sound_parts(slide, verify=False)
            problems = [broken] if broken else []
        there = self._slide_there()
        if there is None:
            self._copy_spots(slide)
            there = self._target.slide(self._name)
            self._report.copied.setdefault(self._name, 0)
        else:
            self._check_same(slide, found, there)
        for parts in found:
            for text in parts.unfinished:
                self._leave_out(text)
            problems += self._merge_encoder(parts, there)
        return problems

    def _leave_out(self, what: str) -> None:
        said = f"{what} of {self._source.path} {'are' if what.endswith('spots') else 'is'} unfinished"
        before = self._report.left_out.get(self._name)
        self._report.left_out[self._name] = f"{before}; {said}" if before else said

    def _slide_there(self) -> StoredSlide | None:
        if not self._target.has_slide(self._name):
            return None
        found = self._target.slide(self._name)
        return found if found.has_spots() else None

    def _copy_spots(self, slide: StoredSlide) -> None:
        """Begin a slide: what it is, and then its spots, as a writer does."""
        self._put(slide.group.path)
        spots = subgroup(slide.group, "spots")
        assert spots is not None
        self._copy(spots, lambda group: [read_array(group, name) for name in SPOT_ARRAYS])

    def _check_same(self, slide: StoredSlide, found: Sequence[SoundParts], there: StoredSlide) -> None:
        """Refuse a slide that only has the name of the one there; fill in what was not known of that."""
        where = f"{self._source.path} has it"
        if slide.spot_ids() != there.spot_ids() or not np.array_equal(slide.spot_xy(), there.spot_xy()):
            raise SlideRecipeError(f"{where} with other spots ({len(there)} there, {len(slide)} here).")
        for what, before, here in (
            ("patient", there.patient, slide.patient),
            ("size in pixels", there.size_px, slide.size_px),
            ("um/px", there.source_mpp, slide.source_mpp),
        ):
            if before is not None and here is not None and before != here:
                raise SlideRecipeError(f"{where} with another {what} ({before} there, {here} here).")
        images = {fingerprint(m) for parts in found for m in parts.magnifications} - {None}
        others = {fingerprint(m) for name in there.encoders() for m in there.undamaged(name)} - {None}
        if images and others and images != others:
            raise SlideRecipeError(f"{where} from another image.")
        scale = there if there.source_mpp is not None else slide
        info = SlideInfo(
            there.name,
            there.patient if there.patient is not None else slide.patient,
            there.image if there.image is not None else slide.image,
            there.size_px if there.size_px is not None else slide.size_px,
            scale.source_mpp,
            scale.source_mpp_from,
        )
        if info.attributes != there.attributes:
            group = self._target.require_group(self._name)
            group.update_attributes({**info.attributes, "sha256": info.sha256})

    def _merge_encoder(self, parts: SoundParts, there: StoredSlide) -> list[str]:
        problems = []
        encoder = str(parts.group.attrs["name"])
        for magnification in parts.magnifications:
            try:
                if self._is_there(magnification):
                    self._count(self._report.there)
                    continue
                self._runs.check(magnification)
                self._describe(parts.group)
                self._copy(magnification.group, lambda group: magnification_in(group).verify())
                self._count(self._report.copied)
                names = magnification.group.path.split("/")
                journal_path(self._target.folder, *names).unlink(missing_ok=True)
            except (SlideError, StoreError) as error:
                if _of_the_disk(error):
                    raise
                problems.append(str(error))
        complete = {mpp_key(m.mpp): m.recipe_sha256 for m in there.undamaged(encoder) if m.complete}
        for group in parts.prototypes:
            if made_from(group, complete) and not self._has_prototypes(group):
                self._target.require_group(self._name, encode_name(encoder), PROTOTYPES)
                self._copy(group, verify_prototypes)
        return problems

    def _count(self, counts: dict[str, int]) -> None:
        counts[self._name] = counts.get(self._name, 0) + 1

    def _is_there(self, magnification: Magnification) -> bool:
        """Whether the store has the same already; False where nothing that counts is there.

        Raises
        ------
        SlideRecipeError
            If it has another.
        """
        named, group = called(magnification), self._group_there(magnification.group)
        if group is None or "recipe" not in group.attrs:
            return False
        try:
            there = magnification_in(group)
        except DamagedSlideError:
            return False
        different = differences(there.recipe, magnification.recipe)
        if different:
            state = "" if there.complete else ", unfinished,"
            raise SlideRecipeError(
                f"{named} is there{state} made with another recipe ({'; '.join(different)}), and is not"
                f" replaced by that of {self._source.path}."
            )
        try:
            if not there.complete or not is_whole(there):
                return False
            same = is_same(there, magnification)
        except DamagedSlideError as error:
            if error.found.startswith(str(self._source.path)):
                raise
            return False
        if not same:
            raise SlideRecipeError(
                f"{named} is there with other numbers by the same recipe, and is not replaced by that of"
                f" {self._source.path}."
            )
        return True

    def _group_there(self, group: zarr.Group) -> zarr.Group | None:
        try:
            return subgroup(self._target.root, group.path)
        except DamagedSlideError:
            return None

    def _has_prototypes(self, group: zarr.Group) -> bool:
        there = self._group_there(group)
        try:
            if there is None or there.attrs.get("complete") is not True:
                return False
            verify_prototypes(there)
        except DamagedSlideError:
            return False
        return True

    def _describe(self, encoder: zarr.Group) -> None:
        """Say what an encoder is, and what its run measured, where that is not said yet."""
        parent = self._target.require_group(self._name, encode_name(str(encoder.attrs["name"])))
        new = {key: value for key, value in encoder.attrs.items() if key not in parent.attrs}
        if new:
            parent.update_attributes(new)

    def _copy(self, group: zarr.Group, verify: Callable[[zarr.Group], object]) -> None:
        """Copy the files of a group; it is there when what describes it is, which is written last."""
        place, key = StoreFolder(self._target.folder), group.path
        place.check(key)
        # Nothing of what was there counts any more, also if the process dies before all is deleted.
        (place.root / key / "zarr.json").unlink(missing_ok=True)
        shutil.rmtree(place.root / key, ignore_errors=True)
        *files, description = files_of(group)
        for file in files:
            self._put_file(place, file)
        with store_errors(self._source.path):
            node = described(self._source.root, key)
        copy = group_at(place, key, node)
        assert copy is not None
        try:
            verify(copy)
        except DamagedSlideError as error:
            shutil.rmtree(place.root / key, ignore_errors=True)
            with store_errors(self._source.path):
                verify(group)  # what is damaged there is said of it
            raise StoreError(
                f"{error.found}; it was not copied as it is, run the same command again."
            ) from error
        self._check_lock()
        self._put_file(place, description)

    def _put(self, key: str) -> None:
        self._put_file(StoreFolder(self._target.folder), f"{key}/zarr.json")

    def _put_file(self, place: StoreFolder, key: str) -> None:
        with store_errors(self._source.path):
            data = folder_of(self._source.root).bytes_of(key)
        if data is not None:
            place.set_sync(key, default_buffer_prototype().buffer.from_bytes(data))
