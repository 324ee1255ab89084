"""Cohort files, spot and count tables by URL: what files on a disk give, fetched once, and errors that say enough."""

from __future__ import annotations

import functools
import gzip
import http.server
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import mmap_st as mm
from mmap_st import fetching
from mmap_st.data.cohort import Cohort, CohortSlide, write_cohort
from mmap_st.data.readers import read_counts, read_spots
from mmap_st.data.survey import survey_cohort
from mmap_st.errors import CohortError, MissingDependencyError, MmapError, RemoteError, SpotsError
from mmap_st.fetching import cached, look_at
from mmap_st.object_stores import Bucket
from mmap_st.urls import Url
from tests.s3_server import S3Server

LAB = Url("s3://lab/study")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(write_section: Callable[..., Path]) -> Path:
    for seed, name in enumerate(("A1", "B1")):
        root = write_section(name, seed=seed, side=4)
    return root


@pytest.fixture
def local(root: Path) -> Cohort:
    return mm.read_cohort(f"her2st:{root}")


def put_tree(folder: Path, url: Url = LAB) -> None:
    bucket = Bucket(url)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            bucket.put(file.relative_to(folder).as_posix(), file)


@pytest.fixture
def lab(server: S3Server, root: Path, local: Cohort) -> S3Server:
    """The server, with the cohort's files and, beside them, cohort files with relative paths."""
    for name in ("cohort.csv", "cohort.parquet"):
        write_cohort(local, root / name)
    put_tree(root)
    server.requests.clear()
    return server


def same(one: Cohort, other: Cohort, names: tuple[str, ...]) -> None:
    for name in names:
        spots, wanted = read_spots(one[name]), read_spots(other[name])
        assert spots.ids == wanted.ids
        assert np.array_equal(spots.xy, wanted.xy)
        counts, measured = read_counts(one[name]), read_counts(other[name])
        assert (counts.ids, counts.genes) == (measured.ids, measured.genes)
        assert np.array_equal(counts.matrix.toarray(), measured.matrix.toarray())


def gets(server: S3Server, part: str = "") -> list[str]:
    return [path for method, path in server.requests if method == "GET" and part in path]


@pytest.mark.parametrize("name", ["cohort.csv", "cohort.parquet"])
def test_a_cohort_on_a_server_is_the_one_on_the_disk(
    name: str, lab: S3Server, local: Cohort, root: Path
) -> None:
    cohort = mm.read_cohort(f"{LAB}/{name}")
    assert cohort.names == local.names
    assert str(cohort["A1"].image) == f"{LAB}/{local['A1'].image.relative_to(root).as_posix()}"
    assert gets(lab, "ST-") == []  # tables are fetched when they are read
    same(cohort, local, local.names)
    before = len(gets(lab))
    same(mm.read_cohort(Path(f"{LAB}/{name}")), local, local.names)
    assert len(gets(lab)) == before
    assert {method for method, _ in lab.requests} <= {"GET", "HEAD"}


def test_a_cohort_on_the_disk_may_name_urls_and_is_written_with_them(
    lab: S3Server, local: Cohort, root: Path, tmp_path: Path
) -> None:
    remote = mm.read_cohort(f"{LAB}/cohort.csv")
    write_cohort(remote, tmp_path / "written.csv")
    again = mm.read_cohort(tmp_path / "written.csv")
    assert again.slides == remote.slides
    same(again, local, local.names)
    frame = pl.DataFrame({"slide": ["A1"], "spots": [str(remote["A1"].spots)], "reader": ["her2st"]})
    assert mm.read_cohort(frame)["A1"].spots == remote["A1"].spots


def test_where_cells_of_a_remote_file_lead(server: S3Server) -> None:
    rows = ("a,x/./i.svs", "b,../up.svs", "c,/data/i.svs", "d,gs://other/i.svs", "e,../../../top.svs")
    Bucket(LAB).put("deep/cohort.csv", "\n".join(("slide,image", *rows)).encode())
    found = [str(row.image) for row in mm.read_cohort(f"{LAB}/deep/cohort.csv").slides]
    assert found == [
        "s3://lab/study/deep/x/i.svs",
        "s3://lab/study/up.svs",
        "/data/i.svs",
        "gs://other/i.svs",
        "s3://lab/top.svs",
    ]
    Bucket(LAB).put("bad.csv", b"slide,image\na,s3://me:secret@lab/x.svs")
    with pytest.raises(CohortError, match=r"row 1 \(a\): image: .*holds a name or a password") as refused:
        mm.read_cohort(f"{LAB}/bad.csv")
    assert "secret" not in str(refused.value)


def test_what_is_no_cohort_is_one_sentence_that_names_the_url(lab: S3Server, cache: Path) -> None:
    Bucket(LAB).put("empty.csv", b"")
    for url, said in (
        (f"{LAB}/none.csv", "study/none.csv does not exist"),
        (f"{LAB}/empty.csv", "s3://lab/study/empty.csv"),
        (f"{LAB}/ST-cnts", "is a folder, not a cohort file"),
        (f"her2st:{LAB}", "a reader looks for files in a folder on a disk"),
    ):
        with pytest.raises(MmapError, match=said) as refused:
            mm.read_cohort(url)
        assert str(cache) not in str(refused.value)


def test_a_table_that_cannot_be_had_fails_its_slide_alone(lab: S3Server, cache: Path) -> None:
    cohort = mm.read_cohort(f"{LAB}/cohort.csv")
    Bucket(LAB).delete(["ST-cnts/A1.tsv.gz", "ST-cnts/A1.tsv"])
    looks = {look.row.slide: look for look in survey_cohort(cohort, counts=True)}
    assert looks["B1"].problems == ()
    assert len(looks["A1"].problems) == 1
    assert "ST-cnts/A1.tsv" in looks["A1"].problems[0]
    assert "does not exist" in looks["A1"].problems[0]
    key = cohort["B1"].spots.text.removeprefix(f"{LAB}/")
    Bucket(LAB).put(key, b"x\ty\n1\t2\n")
    with pytest.raises(SpotsError, match=f"{LAB}/{key} is missing the columns") as damaged:
        read_spots(cohort["B1"])
    assert str(cache) not in str(damaged.value)


def test_what_was_replaced_on_the_server_is_fetched_again(lab: S3Server, local: Cohort) -> None:
    cohort = mm.read_cohort(f"{LAB}/cohort.csv")
    before = read_counts(cohort["A1"]).matrix.toarray()
    key = cohort["A1"].counts.text.removeprefix(f"{LAB}/")
    Bucket(LAB).put(key, local["B1"].counts)
    assert not np.array_equal(read_counts(cohort["A1"]).matrix.toarray(), before)


def test_faults_of_a_moment_change_nothing(lab: S3Server, local: Cohort) -> None:
    faults: itertools.cycle[Any] = itertools.cycle([503, None, "drop", None, 0.05, 500, None])
    lab.fault = lambda method, path, request: next(faults)
    same(mm.read_cohort(f"{LAB}/cohort.csv"), local, local.names)


def test_refused_credentials_are_the_slides_error_and_shown_nowhere(
    lab: S3Server, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    cohort = mm.read_cohort(f"{LAB}/cohort.csv")
    lab.fault = lambda method, path, request: 403
    with pytest.raises(RemoteError, match="refuses these credentials") as refused:
        read_spots(cohort["A1"])
    with pytest.raises(RemoteError, match="refuses these credentials"):
        mm.read_cohort(f"{LAB}/cohort.csv")
    shown = caplog.text + str(refused.value) + repr(refused.value.__cause__)
    for secret in ("AKIATEST", "secret-of-the-tests"):
        assert secret not in shown
        assert all(secret.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_without_obstore_it_is_said_before_any_work(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mmap: Callable[..., Any]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    (tmp_path / "c.csv").write_text("slide,image\nA1,s3://lab/a.svs\n")
    for cohort in (f"{LAB}/cohort.csv", tmp_path / "c.csv"):
        with pytest.raises((MissingDependencyError, RemoteError), match=r"mmap-st\[cloud\]"):
            mm.read_cohort(cohort)
        done = mmap("extract", cohort, tmp_path / "x.zarr", "--encoder", "timm:test_efficientnet", "--mpp", 1)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_folder_of_counts_is_fetched_with_all_that_lies_below(server: S3Server, tmp_path: Path) -> None:
    outs = tmp_path / "outs"
    (outs / "matrix").mkdir(parents=True)
    (outs / "spatial").mkdir()
    rows = "\n".join(f"b{i},1,{i},{i},{100 + i},{200 + i}" for i in range(4))
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
    (outs / "spatial" / "tissue_positions.csv").write_text(header + rows)
    (outs / "spatial" / "scalefactors_json.json").write_text('{"bin_size_um": 8.0, "microns_per_pixel": 0.5}')
    for name, text in (
        ("matrix.mtx.gz", "%%MatrixMarket matrix coordinate integer general\n2 4 2\n1 1 3\n2 4 5\n"),
        ("features.tsv.gz", "E1\tFASN\tGene Expression\nE2\tERBB2\tGene Expression\n"),
        ("barcodes.tsv.gz", "b0\nb1\nb2\nb3\n"),
    ):
        (outs / "matrix" / name).write_bytes(gzip.compress(text.encode()))
    put_tree(outs, LAB)

    def row(place: Any) -> CohortSlide:
        return CohortSlide(
            "a", spots=place / "spatial/tissue_positions.csv", counts=place / "matrix", reader="visium-hd"
        )

    remote, local = row(LAB), row(outs)
    assert read_spots(remote).mpp == read_spots(local).mpp == 0.5
    assert np.array_equal(read_counts(remote).matrix.toarray(), read_counts(local).matrix.toarray())
    xenium = CohortSlide(
        "a", spots=LAB / "experiment.xenium", counts=LAB / "transcripts.parquet", reader="xenium"
    )
    with pytest.raises(SpotsError, match="the reader xenium reads a whole folder"):
        read_spots(xenium)


def test_the_cache_keeps_within_its_bounds(
    server: S3Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MOST_BYTES", 250)
    monkeypatch.setattr(fetching, "_IN_USE_S", 0.0)
    bucket = Bucket(LAB)
    abandoned, begun = (cache / "files" / f".fetching-{n}" for n in "ab")
    for folder in (abandoned, begun):
        folder.mkdir(parents=True)
    os.utime(abandoned, (0, 0))
    copies = []
    for number in range(4):
        bucket.put(str(number), bytes(100))
        copies.append(cached(look_at(LAB / str(number))))
        os.utime(copies[-1].parent, (time.time() - 1000 + number,) * 2)
        if number == 1:
            cached(look_at(LAB / "0"))  # what is used again is not the oldest
    assert [copy.exists() for copy in copies] == [True, False, False, True]
    assert (abandoned.exists(), begun.exists()) == (False, True)


def test_several_at_once_fetch_what_each_can_read(server: S3Server, cache: Path) -> None:
    content = os.urandom(20 << 20)
    Bucket(LAB).put("large", content)
    server.requests.clear()
    files, got = look_at(LAB / "large"), []
    threads = [threading.Thread(target=lambda: got.append(cached(files).read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one == content for one in got] == [True] * 3
    assert [path.name for path in (cache / "files").iterdir()] == [cached(files).parent.name]


def test_a_disk_that_is_full_and_a_cache_that_is_none_are_one_sentence(
    lab: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMAP_CACHE", str(tmp_path / "file"))
    with pytest.raises(RemoteError, match=r"cannot be kept in .*name another folder in MMAP_CACHE"):
        mm.read_cohort(f"{LAB}/cohort.csv")


def test_a_path_that_leads_out_of_its_folder_is_refused(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bucket(LAB).put("folder/x", b"x")
    found = look_at(LAB / "folder").files[0][1]
    monkeypatch.setattr(Bucket, "stats", lambda self, below: iter([("folder/../../x", found)]))
    with pytest.raises(RemoteError, match="is no path that a file can have here"):
        look_at(LAB / "folder")


class _Handler(http.server.SimpleHTTPRequestHandler):
    """A web server that knows neither ranges nor versions."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(root: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Handler, directory=str(root))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_of_a_server_that_names_no_version_nothing_is_taken_for_the_same(
    web: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "cohort.csv").write_text("slide\na\n")
    url = Url(f"{web}/cohort.csv")
    assert cached(look_at(url)) == cached(look_at(url))
    monkeypatch.setattr(_Handler, "send_header", _without_times)
    files = look_at(url)
    assert cached(files) != cached(files)


def _without_times(self: http.server.SimpleHTTPRequestHandler, name: str, value: str) -> None:
    if name != "Last-Modified":
        http.server.SimpleHTTPRequestHandler.send_header(self, name, value)


def test_a_plain_web_server_serves_too(
    web: str, root: Path, local: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cohort(local, root / "cohort.csv")
    monkeypatch.setattr(fetching, "_PIECE", 64)  # more than a piece of it is asked for at a time
    same(mm.read_cohort(f"{web}/cohort.csv"), local, local.names)
    (root / "p%20q.csv").write_text("slide,image\na,x.svs\n")
    (root / "a b").mkdir()
    (root / "a b" / "c d.csv").write_text("slide,image\na,x y.svs\n")
    for address in ("a%20b/c%20d.csv", "a b/c d.csv"):
        found = mm.read_cohort(f"{web}/{address}")["a"].image
        assert (found.name, found.parent.parent) == ("x y.svs", Url(web))
    assert mm.read_cohort(f"{web}/p%2520q.csv").names == ("a",)
    with pytest.raises(RemoteError, match=r"none\.csv does not exist"):
        mm.read_cohort(f"{web}/none.csv")
