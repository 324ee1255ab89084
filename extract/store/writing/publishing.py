"""Slides are written to a folder on a local disk, and published to a bucket when they are complete.

What is unfinished never leaves the machine: journals, chunks that are written again, drafts. What is
published is written once: chunks first, then what describes them, and last the mark that a magnification is
complete, which holds the digests of all its chunks. A reader sees all of it or nothing, whatever happens.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mmap_st.data import Spots
from mmap_st.errors import RefusedError, RemoteError, SlideRecipeError, StoreError, printable
from mmap_st.extract.store.nodes import folder_of, subgroup
from mmap_st.extract.store.reader import FeatureStore, is_nonempty
from mmap_st.extract.store.recipe import encode_name
from mmap_st.extract.store.soundness import files_of
from mmap_st.extract.store.storage import AT_A_TIME
from mmap_st.extract.store.stored_slide import SlideInfo
from mmap_st.extract.store.writing.journal import journals_folder
from mmap_st.extract.store.writing.lease import SlideLease
from mmap_st.extract.store.writing.writer import check_spots
from mmap_st.extract.windows import mpp_key
from mmap_st.fetching import cache_folder
from mmap_st.files import sha256_of_json, writing
from mmap_st.object_stores import Bucket
from mmap_st.urls import Url

_LOG = logging.getLogger(__name__)
_DESCRIPTION = "zarr.json"
#: How often a request is tried that was refused for a moment, each as long as `urls.LONGEST_REQUEST_S`.
_TRIES = 4


@dataclass(frozen=True)
class Publication:
    """A store in a bucket, and the folder on this machine where its slides are written first.

    Attributes
    ----------
    url
        Of the store.
    folder
        A store of its own, of this URL alone. A run that is killed resumes from what is there.
    """

    url: Url
    folder: Path

    @classmethod
    def of(cls, url: Url, stage: Path | None) -> Publication:
        """The publication of a run: its folder is on the stage, or where programs keep what they can lose.

        Raises
        ------
        WriteError
            If the folder cannot be made.
        """
        where = cache_folder() if stage is None else stage
        folder = where / f"store-{sha256_of_json(str(url))[:16]}" / "features.zarr"
        with writing(folder, "--stage" if stage else "the folder of unfinished slides"):
            folder.parent.mkdir(parents=True, exist_ok=True)
        return cls(url, folder)

    def created(self) -> FeatureStore:
        """The folder's store, to be written to; both it and the one that is published are made where absent.

        Raises
        ------
        StoreError
            If something else lies at the URL, or the server refuses.
        """
        local = FeatureStore.create(self.folder)
        if not is_nonempty(self.url):
            content = folder_of(local.root).bytes_of(_DESCRIPTION)
            assert content is not None
            Bucket(self.url).put(_DESCRIPTION, content)
        FeatureStore.open(self.url)
        return local

    def lease(self, slide: str, stop: Callable[[], bool], *, patient: bool) -> SlideLease:
        """The lease of a slide; see `SlideLease`."""
        return SlideLease(self.url, encode_name(slide), stop, patient=patient)

    def publish_group(self, slide: str, write: Callable[[FeatureStore], str]) -> None:
        """Publish a group that `write` makes in a store of its own; it returns the path of the group.

        Raises
        ------
        SlideLockedError
            If another process publishes something of the slide.
        RemoteError
            If the server does not take it.
        """
        with SlideLease(self.url, encode_name(slide)) as lease, TemporaryDirectory() as folder:
            local = FeatureStore.create(Path(folder) / "part.zarr")
            path = write(local)
            upload = _Upload(local, Bucket(self.url), lease, _Sent())
            upload.send([f"{path.rpartition('/')[0]}/{_DESCRIPTION}"])
            upload.send_group(path)

    def discard_other(self, local: FeatureStore, info: SlideInfo, spots: Spots) -> None:
        """Remove what an earlier run left of a slide with another image or other spots."""
        if not local.has_slide(info.name):
            return
        try:
            there = local.slide(info.name)
            if there.has_spots():
                check_spots(local, info.name, spots)
            if there.attributes == info.attributes:
                return
        except (StoreError, SlideRecipeError) as error:
            _LOG.info("slide %s: what an earlier run left is discarded (%s)", printable(info.name), error)
        self.discard(local, info.name)

    def discard(self, local: FeatureStore, slide: str) -> None:
        """Remove a slide from the folder."""
        key = encode_name(slide)
        shutil.rmtree(local.folder / key, ignore_errors=True)
        shutil.rmtree(journals_folder(local.folder) / key, ignore_errors=True)

    def publish(
        self, local: FeatureStore, slide: str, encoder: str, mpps: Sequence[float], lease: SlideLease
    ) -> None:
        """Publish complete magnifications of a slide, and remove it from the folder.

        Raises
        ------
        SlideLockedError
            If the lease was lost.
        SlideRecipeError
            If the slide was published with other spots meanwhile.
        RemoteError
            If the server does not take it; what is published is whole, and the folder keeps the rest.
        """
        began, sent = time.monotonic(), _Sent()
        lease.wait_until_fresh()
        bucket, remote = Bucket(self.url), FeatureStore.open(self.url)
        key, encoder_key = encode_name(slide), encode_name(encoder)
        upload = _Upload(local, bucket, lease, sent)
        known = remote.has_slide(slide) and remote.slide(slide).has_spots()
        if known:
            own = local.slide(slide)
            check_spots(remote, slide, Spots(own.spot_ids(), own.spot_xy()))
        else:
            upload.send([f"{key}/{_DESCRIPTION}"])
            upload.send_group(f"{key}/spots")
        upload.send([f"{key}/{encoder_key}/{_DESCRIPTION}"])
        for mpp in mpps:
            upload.send_group(f"{key}/{encoder_key}/{mpp_key(mpp)}")
        self.discard(local, slide)
        what = f"{sent.objects} objects, {sent.bytes / 1e6:.1f} MB, in {time.monotonic() - began:.1f} s"
        _LOG.info("slide %s: published %s", printable(slide), printable(what))


@dataclass
class _Sent:
    """What was sent."""

    objects: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class _Upload:
    """Sends files of a local store to a bucket, under the same keys, while a lease is held."""

    local: FeatureStore
    bucket: Bucket
    lease: SlideLease
    sent: _Sent

    def send_group(self, path: str) -> None:
        """Send a group's arrays, and then what marks it as complete."""
        group = subgroup(self.local.root, path)
        assert group is not None
        files = list(files_of(group))
        arrays, mark = [key for key in files if self._size(key) is not None], files[-1]
        arrays.remove(mark)
        there = dict(self.bucket.keys(path))
        if mark in there:
            self._put(mark, _unmarked(self._content(mark)))
        self.send(arrays)
        if stale := sorted(set(there) - set(files)):
            self.lease.check()
            self.bucket.delete(stale)
        self.send([mark])

    def send(self, keys: Sequence[str]) -> None:
        """Send files, many at a time."""
        with ThreadPoolExecutor(min(AT_A_TIME, max(1, len(keys)))) as senders:
            for size in senders.map(lambda key: self._put(key, self._content(key)), keys):
                self.sent.objects += 1
                self.sent.bytes += size

    def _put(self, key: str, content: bytes) -> int:
        for attempt in _attempts():
            self.lease.check()
            try:
                self.bucket.put(key, content)
            except RemoteError as error:
                if attempt == _TRIES or isinstance(error, RefusedError):
                    raise
            else:
                break
        return len(content)

    def _content(self, key: str) -> bytes:
        return (self.local.folder / key).read_bytes()

    def _size(self, key: str) -> int | None:
        path = self.local.folder / key
        return path.stat().st_size if path.is_file() else None


def _attempts() -> Iterator[int]:
    for attempt in range(1, _TRIES + 1):
        yield attempt
        time.sleep(attempt)


def _unmarked(content: bytes) -> bytes:
    """What describes a group, without the mark that it is complete."""
    node = json.loads(content)
    node["attributes"] = {**node.get("attributes", {}), "complete": False}
    return json.dumps(node).encode()
