"""Feature stores in a bucket: the same to the bit as in a folder, whatever the server does meanwhile."""

from __future__ import annotations

import itertools
import logging
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import mmap_st as mm
from mmap_st.errors import DamagedSlideError, RemoteError, SlideLockedError, StoreError
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.writing import lease
from mmap_st.extract.store.writing.lease import SlideLease, lease_holder
from mmap_st.object_stores import Bucket
from mmap_st.prototypes.stored import candidates_in
from mmap_st.urls import Url
from tests.s3_server import S3Server

ENCODER = "timm:test_efficientnet"
STORE = "s3://lab/features.zarr"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def root(write_section: Any) -> Path:
    for seed, name in enumerate(("A1", "B1")):
        root: Path = write_section(name, seed=seed, side=4 + seed)
    return root


def words(root: Path, store: object = STORE, *more: object) -> tuple[object, ...]:
    return (
        "extract", f"her2st:{root}", store, "--encoder", ENCODER, "--random-weights", "--magnifications", "20,5",
        "--precision", "fp32", "--device", "cpu", "--chunk", "8", *more,
    )  # fmt: skip


def contents(place: object) -> dict[str, object]:
    """All that is complete in a store: rows, recipes and digests."""
    store = FeatureStore(place)  # type: ignore[arg-type]
    found: dict[str, object] = {}
    for name in store.slides:
        slide = store.slide(name)
        for mpp, one in slide.complete(ENCODER).items():
            rows = one.embedding().tobytes() + one.valid().tobytes() + one.tissue().tobytes()
            digests = one.group.attrs["digests"]
            found[f"{name} {mpp}"] = (slide.spot_ids(), rows, one.recipe_sha256, str(digests))
    return found


@pytest.fixture
def alone(root: Path, tmp_path: Path, mmap: Command) -> dict[str, object]:
    """The same in a folder."""
    assert mmap(*words(root, tmp_path / "alone.zarr")).returncode == 0
    return contents(tmp_path / "alone.zarr")


def writes(server: S3Server) -> list[str]:
    """What was written of the store itself, in order."""
    return [path for method, path in server.requests if method == "PUT" and "features.zarr/" in path]


def test_it_is_the_same_as_in_a_folder(
    root: Path, mmap: Command, server: S3Server, alone: dict[str, object], tmp_path: Path
) -> None:
    shown = mmap(*words(root))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert STORE in shown.stdout
    assert contents(STORE) == alone
    for slide in ("A1", "B1"):
        written = [path for path in writes(server) if f"/{slide}/" in path]
        assert written[-1] == f"/lab/features.zarr/{slide}/{ENCODER.replace(':', '%3A')}/2.0000/zarr.json"
        assert len(written) == len(set(written))
    # What was written on the way to it is gone.
    assert [path for path in (tmp_path / "cache").rglob("*") if path.name in ("A1", "B1")] == []


def test_a_second_run_writes_nothing(root: Path, mmap: Command, server: S3Server) -> None:
    assert mmap(*words(root)).returncode == 0
    server.requests.clear()
    shown = mmap(*words(root))
    assert "2 complete before" in shown.stdout
    assert writes(server) == []
    chunks = [path for method, path in server.requests if method == "GET" and "/c/" in path]
    assert {path.split("/")[4] for path in chunks} <= {"spots"}, "no chunk of embeddings is read again"
    status = mmap(*words(root, STORE, "--status"))
    assert "2 done" in status.stdout
    assert "does not exist" not in status.stderr


@pytest.mark.parametrize("number", [1, 3, 14, 21, 47])
def test_an_upload_that_ends_anywhere_leaves_nothing_wrong_and_goes_on(
    root: Path, mmap: Command, server: S3Server, alone: dict[str, object], number: int
) -> None:
    count = itertools.count(1)
    server.fault = lambda method, path, request: (
        403 if method == "PUT" and ".locks" not in path and next(count) >= number else None
    )
    shown = mmap(*words(root))
    assert shown.returncode != 0
    assert "refuses these credentials" in " ".join((shown.stdout + shown.stderr).split())
    server.fault = lambda method, path, request: None
    if number > 1:  # else there is no store
        there = contents(STORE)
        assert there == {key: alone[key] for key in there}
    shown = mmap(*words(root))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert contents(STORE) == alone
    if number > 6:
        assert "; 0 windows" in shown.stdout or "embedded; " in shown.stdout


def test_faults_of_the_network_change_nothing(
    root: Path, mmap: Command, server: S3Server, alone: dict[str, object]
) -> None:
    chance = random.Random(0)
    server.fault = lambda method, path, request: chance.choice([None] * 12 + [503, "drop", 0.02, 500])
    shown = mmap(*words(root))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert contents(STORE) == alone


def test_of_two_writers_the_second_is_told_who_the_first_is(
    root: Path, mmap: Command, server: S3Server, alone: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_BEAT_S", 0.1)
    monkeypatch.setattr(lease, "_POLL_S", 0.2)
    with SlideLease(Url(STORE), "B1"):
        shown = mmap(*words(root))
        assert shown.returncode == 1
        assert "is writing it; wait for that to end" in " ".join(shown.stdout.split())
        assert "1 done, 1 in flight" in mmap(*words(root, STORE, "--status")).stdout
        assert contents(STORE) == {key: value for key, value in alone.items() if key.startswith("A1")}
    assert lease_holder(Url(STORE), "B1") is None
    assert "1 done, 1 failed" in mmap(*words(root, STORE, "--status")).stdout
    assert mmap(*words(root)).returncode == 0
    assert contents(STORE) == alone
    assert "2 done" in mmap(*words(root, STORE, "--status")).stdout


@pytest.mark.parametrize("conditions", ["known", "unknown", "ignored"])
def test_a_lease_is_one_writers_and_a_dead_ones_is_taken_over(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, conditions: str
) -> None:
    names = {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"}

    def without_conditions(method: str, path: str, request: dict[str, Any]) -> int | None:
        if conditions == "unknown" and names & set(request):
            return 501
        for name in names & set(request):
            del request[name]
        return None

    if conditions != "known":
        server.fault = without_conditions
    monkeypatch.setattr(lease, "_BEAT_S", 0.2)
    monkeypatch.setattr(lease, "_POLL_S", 0.2)
    monkeypatch.setattr(lease, "_SETTLE_S", 0.6)
    url = Url(STORE)
    with SlideLease(url, "A1") as first:
        with pytest.raises(SlideLockedError, match="another process"), SlideLease(url, "A1"):
            pass
        with pytest.raises(SlideLockedError, match="another process"), SlideLease(url, "A1", patient=False):
            pass
        first.check()
    with SlideLease(url, "A1") as second:
        assert second.fence == first.fence + 1
        # As if it were dead: it does not write any more, and a minute goes by.
        second._released.set()
        monkeypatch.setattr(lease, "DEAD_AFTER_S", 2.0)
        with SlideLease(url, "A1") as third:
            assert third.fence > second.fence
            second._fresh_until = 0.0
            with pytest.raises(SlideLockedError, match="was lost"):
                second.check()
            third.check()


def test_many_who_want_a_slide_at_once_get_it_one_after_the_other(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_BEAT_S", 0.1)
    monkeypatch.setattr(lease, "_POLL_S", 0.05)
    inside: list[int] = []
    most: list[int] = []
    fences: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            try:
                with SlideLease(Url(STORE), "A1", patient=False) as held:
                    inside.append(number)
                    most.append(len(inside))
                    held.check()
                    fences.append(held.fence)
                    time.sleep(0.05)
                    inside.remove(number)
                    return
            except SlideLockedError:
                time.sleep(0.1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert fences == sorted(set(fences))
    assert len(fences) == 6


def test_who_lost_the_lease_publishes_nothing(
    root: Path, mmap: Command, server: S3Server, alone: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_BEAT_S", 0.05)
    monkeypatch.setattr(lease, "_REGAINED_WITHIN_S", 2.0)
    taken = itertools.count()

    def another_takes_it(method: str, path: str, request: dict[str, Any]) -> None:
        # While the spots are written, another process writes its own lease over ours.
        if method == "PUT" and path.endswith("/A1/spots/xy/zarr.json") and next(taken) == 0:
            server.fault = lambda method, path, request: None
            Bucket(Url(f"{STORE}.locks")).put(
                "A1.lease.json",
                b'{"pid": 1, "host": "other", "machine": "other", "token": "t", "fence": 9, "since": 0, "beat": 0}',
            )
            time.sleep(1.0)

    server.fault = another_takes_it  # type: ignore[assignment]
    shown = mmap(*words(root))
    assert shown.returncode == 1
    assert "another process took it over" in " ".join(shown.stdout.split())
    assert contents(STORE) == {key: value for key, value in alone.items() if key.startswith("B1")}
    assert not any(path.endswith("2.0000/zarr.json") and "/A1/" in path for path in writes(server))
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 1.0)
    assert mmap(*words(root)).returncode == 0
    assert contents(STORE) == alone


def test_an_object_that_is_missing_or_anothers_is_noticed(
    root: Path, mmap: Command, server: S3Server
) -> None:
    assert mmap(*words(root)).returncode == 0
    encoder = ENCODER.replace(":", "%3A")
    bucket, chunk = Bucket(Url(STORE)), f"B1/{encoder}/0.5000/embedding/c/1/0"
    kept, other = bucket.get(chunk), bucket.get(f"A1/{encoder}/0.5000/embedding/c/1/0")
    assert kept is not None
    assert other is not None
    for content in (None, other, kept[:-3] + b"abc"):
        if content is None:
            bucket.delete([chunk])
        else:
            bucket.put(chunk, content)
        with pytest.raises(DamagedSlideError, match=r"s3://lab/features\.zarr/B1"):
            FeatureStore(STORE)["B1"].embedding(ENCODER, mpp=0.5)
        FeatureStore(STORE)["A1"].embedding(ENCODER, mpp=0.5)
    bucket.delete([chunk])
    shown = mmap(*words(root))
    assert "1 embedded, 1 complete before" in shown.stdout
    assert bucket.get(chunk) == kept


def test_another_recipe_is_refused_or_replaces_it(root: Path, mmap: Command, server: S3Server) -> None:
    assert mmap(*words(root)).returncode == 0
    before = contents(STORE)
    shown = mmap(*words(root, STORE, "--tissue-min", "0.5"))
    assert shown.returncode == 2
    assert "another recipe" in " ".join(shown.stderr.split())
    assert contents(STORE) == before
    assert mmap(*words(root, STORE, "--tissue-min", "0.5", "--overwrite")).returncode == 0
    after = contents(STORE)
    assert after.keys() == before.keys()
    assert all(after[key] != before[key] for key in before)


def test_more_magnifications_join_those_that_are_there(
    root: Path, mmap: Command, server: S3Server, alone: dict[str, object]
) -> None:
    few = [word if word != "20,5" else "5" for word in words(root)]
    assert mmap(*few).returncode == 0
    server.requests.clear()
    assert mmap(*words(root)).returncode == 0
    assert contents(STORE) == alone
    assert not any("/2.0000/" in path or "/spots/" in path for path in writes(server))


@pytest.fixture
def published(tiny: Any, server: S3Server) -> str:
    """The store of `tiny`, copied to the bucket as any tool copies it."""
    bucket = Bucket(Url(STORE))
    for path in sorted(tiny.store.rglob("*")):
        if path.is_file():
            bucket.put(str(path.relative_to(tiny.store)), path)
    return STORE


def test_heads_are_trained_and_predict_by_url(
    tiny: Any, published: str, mmap: Command, tmp_path: Path
) -> None:
    for place, name in ((tiny.store, "folder"), (published, "url")):
        shown = mmap(
            "fit-head", f"her2st:{tiny.her2st}", place, "--encoder", "efficientnet-lite0", "--set", "epochs=2",
            "--genes", "mean:10", "--test", "patient=B", "--out", tmp_path / f"run {name}",
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        shown = mmap("predict", tmp_path / "run folder", place, "--out", tmp_path / name)
        assert shown.returncode == 0, shown.stderr
    for slide in ("A1", "B1", "C1"):
        one, other = (anndata.read_h5ad(tmp_path / name / f"{slide}.h5ad") for name in ("folder", "url"))
        np.testing.assert_array_equal(one.X, other.X)
    figures = [(tmp_path / f"run {name}" / "metrics.json").read_text() for name in ("folder", "url")]
    assert figures[0].replace(str(tiny.store), published) == figures[1] or "pcc" in figures[1]


def test_prototypes_are_published_and_built_once(
    tiny: Any, published: str, server: S3Server, mmap: Command, tmp_path: Path
) -> None:
    def built(place: object) -> str:
        shown = mmap("prototypes", place, "--encoder", "efficientnet-lite0", "--clusters", "4")
        assert shown.returncode == 0, shown.stderr
        return shown.stdout

    own = shutil.copytree(tiny.store, tmp_path / "own.zarr")
    assert built(published).count("built") == built(own).count("built") == 3
    assert built(published).count("there before") == 3
    kept, by_url = (candidates_in(mm.FeatureStore(place)["A1"]) for place in (own, published))
    assert kept.keys() == by_url.keys() != set()
    for title in kept:
        np.testing.assert_array_equal(kept[title].centre, by_url[title].centre)
        np.testing.assert_array_equal(kept[title].label, by_url[title].label)
    # With credentials that may only read, they are built for the run.
    server.fault = lambda method, path, request: 403 if method == "PUT" else None
    shown = mmap("prototypes", published, "--encoder", "efficientnet-lite0", "--clusters", "5")
    assert shown.returncode == 0, shown.stderr
    assert "is published without the prototypes that are needed" in " ".join(shown.stderr.split())


def test_a_chunk_is_fetched_once(tiny: Any, published: str, server: S3Server) -> None:
    server.requests.clear()
    store = mm.FeatureStore(published)
    there = mm.FeatureStore(tiny.store)
    for name in store.slides:
        for mpp in (0.5, 1.0):
            one = store[name].embedding("efficientnet-lite0", mpp=mpp)
            np.testing.assert_array_equal(one, there[name].embedding("efficientnet-lite0", mpp=mpp))
    asked = [path for method, path in server.requests if method == "GET" and "/embedding/c/" in path]
    assert len(asked) == len(set(asked)) > 0


def test_commands_read_it_and_what_would_write_to_it_says_so(
    tiny: Any, published: str, mmap: Command, tmp_path: Path
) -> None:
    assert "A1" in mmap("info", published, "--verify").stdout
    assert mmap("pack", published, tmp_path / "f.zarr.zip").returncode == 0
    assert mmap("merge", published, "--out", tmp_path / "copy.zarr").returncode == 0
    there = mm.FeatureStore(tiny.store)
    for copy in (tmp_path / "f.zarr.zip", tmp_path / "copy.zarr"):
        copied = mm.FeatureStore(copy)["A1"].embedding("efficientnet-lite0", mpp=0.5)
        np.testing.assert_array_equal(copied, there["A1"].embedding("efficientnet-lite0", mpp=0.5))
    np.save(tmp_path / "A1.npy", np.zeros((4, 3), np.float32))
    for refused in (
        ("gc", published),
        ("merge", tiny.store, "--out", published),
        ("import", published, "--slide", "A1", "--encoder", "x", "--mpp", "1", "--features", tmp_path / "A1.npy"),
        ("info", published, "--verify", "--seal"),
        ("report", tiny.run, "--out", "s3://lab/figures"),
        ("predict", tiny.run, published, "--out", "s3://lab/predictions"),
    ):  # fmt: skip
        shown = mmap(*refused, cwd=tmp_path)
        assert shown.returncode == 2, (refused, shown.stdout, shown.stderr)
        said = " ".join(shown.stderr.split())
        assert "is in an object store, where only" in said or "is a URL, and results" in said, (refused, said)
    assert not (tmp_path / "s3:").exists()


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("s3://lab/none.zarr", "is not a feature store"),
        ("s3://nolab/x.zarr", "NoSuchBucket"),
        ("https://127.0.0.1:9/x.zarr", "is on a web server, which cannot list"),
    ],
)
def test_what_is_no_store_is_one_sentence(server: S3Server, mmap: Command, store: str, said: str) -> None:
    shown = mmap("info", store)
    assert shown.returncode == 2
    assert said in " ".join(shown.stderr.split())
    assert "Traceback" not in shown.stderr


def test_what_is_in_the_way_is_not_written_over(root: Path, mmap: Command, server: S3Server) -> None:
    Bucket(Url(STORE)).put("notes.txt", b"mine")
    shown = mmap(*words(root))
    assert shown.returncode == 2
    assert "exists and is not a feature store" in " ".join(shown.stderr.split())
    assert writes(server) == ["/lab/features.zarr/notes.txt"]


def test_credentials_are_nowhere(
    root: Path, mmap: Command, server: S3Server, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.DEBUG):
        shown = mmap(*words(root))
        server.fault = lambda method, path, request: 403
        refused = mmap(*words(root))
    server.fault = lambda method, path, request: None
    texts = [caplog.text, *(one.stdout + one.stderr for one in (shown, refused))]
    bucket = Bucket(Url("s3://lab/features"))
    objects = [Bucket(Url(STORE)).get(key) for key, _ in Bucket(Url(STORE)).keys()]  # noqa: SIM118
    locks = [Bucket(Url(f"{STORE}.locks")).get(key) for key, _ in Bucket(Url(f"{STORE}.locks")).keys()]  # noqa: SIM118
    assert bucket
    assert len(objects) > 20
    for secret in ("secret-of-the-tests", "AKIATEST"):
        assert not any(secret in text for text in texts)
        assert not any(secret.encode() in (content or b"") for content in objects + locks)


def test_a_job_that_is_killed_resumes_and_others_take_its_slides(
    root: Path, server: S3Server, alone: dict[str, object], mmap: Command
) -> None:
    command = [sys.executable, "-m", "mmap_st", *map(str, words(root, STORE, "--claim"))]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not any(path.endswith("A1/spots/zarr.json") for path in writes(server)):
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    job.kill()
    job.wait()
    there = contents(STORE)
    assert there == {key: alone[key] for key in there}
    # On the same machine its lease is known to be of a dead process only after a minute.
    for name in ("A1", "B1"):
        Bucket(Url(f"{STORE}.locks")).delete([f"{name}.lease.json"])
    assert mmap(*words(root)).returncode == 0
    assert contents(STORE) == alone


def test_a_server_that_is_gone_fails_slides_and_loses_nothing(
    root: Path, mmap: Command, server: S3Server, alone: dict[str, object]
) -> None:
    server.fault = lambda method, path, request: (
        403 if "/B1" in path and "spots" in path and method == "PUT" else None
    )
    shown = mmap(*words(root))
    assert shown.returncode == 1
    assert "1 embedded, 1 failed" in shown.stdout
    server.fault = lambda method, path, request: None
    shown = mmap(*words(root))
    assert "1 embedded, 1 complete before; 0 windows" in shown.stdout, "it was embedded before"
    assert contents(STORE) == alone


def test_errors_of_a_store_by_url_are_a_stores(server: S3Server) -> None:
    assert issubclass(RemoteError, StoreError)
    with pytest.raises(StoreError):
        mm.FeatureStore("s3://lab/none")
