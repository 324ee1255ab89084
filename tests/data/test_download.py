"""Downloads from a server on this machine, which is as bad as servers are."""

import contextlib
import gzip
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from mmap_st.data.download.datasets import DATASETS, KINDS, choose
from mmap_st.data.download.run import DownloadReport, DownloadRequest, download
from mmap_st.data.download.transfer import Patience
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.errors import RequestError

HURRY = Patience(connect_s=2.0, read_s=0.3, attempts=3, wait_s=0.01)
COUNTS = "data/ST-cnts/C1.tsv.gz"
SPOTS = "data/ST-spotfiles/C1_selection.tsv"
IMAGE = "data/ST-imgs/C/C1/5714_HE_BT_C1.jpg"
LABELS = "data/ST-pat/lbl/C1_labeled_coordinates.tsv"
HIDDEN = "data/ST-imgs/A/A1/a section.jpg"


class Site:
    """A server of files; `moods` says how it answers the next requests for a path, then it answers well."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.moods: dict[str, list[str]] = {}
        self.ranges: dict[str, list[str | None]] = {}
        self.release = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = urlsplit(self.path).path.lstrip("/").replace("%20", " ")
                site.ranges.setdefault(path, []).append(self.headers.get("Range"))
                moods = site.moods.get(path, [])
                site.answer(self, path, moods.pop(0) if moods else "well")

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler, path: str, mood: str) -> None:
        kind, _, word = mood.partition(":")
        body = self.files.get(path)
        if kind.isdecimal() or body is None:
            to.send_response(int(kind) if kind.isdecimal() else 404)
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        if kind == "silent":
            self.release.wait(10)
            to.close_connection = True
            return
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        wanted, known = to.headers.get("Range"), to.headers.get("If-Range")
        start = 0
        if wanted and known in (tag, "Sun, 01 Nov 2026 00:00:00 GMT") and kind != "no-range":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body) > 0:
            to.send_response(416)
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        to.send_response(206 if start else 200)
        if start:
            shown = 0 if kind == "wrong-range" else start
            to.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
        if kind == "weak":
            to.send_header("ETag", f"W/{tag}")
            to.send_header("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT")
        else:
            to.send_header("ETag", tag)
        if kind == "encoded":
            to.send_header("Content-Encoding", "gzip")
        rest = body[start:]
        if kind == "chunked":
            to.send_header("Transfer-Encoding", "chunked")
            to.end_headers()
            half = len(rest) // 2
            to.wfile.write(b"%x\r\n%s\r\n" % (half, rest[:half]))
            if word != "broken":
                to.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(rest) - half, rest[half:]))
            to.close_connection = True
            return
        to.send_header("Content-Length", str(len(rest)))
        to.end_headers()
        if kind in ("break", "stall", "wrong-start"):
            to.wfile.write((b"x" if kind == "wrong-start" else b"") + rest[: int(word)])
            to.wfile.flush()
            if kind == "stall":
                self.release.wait(10)
            to.close_connection = True
        else:
            to.wfile.write(rest)


def serve() -> Iterator[Site]:
    site = Site()
    yield site
    site.release.set()
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """A server with section C1 and the image of A1, of which the registry knows no hashes."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rng = np.random.default_rng(0)
    places = [(x, y) for y in range(1, 5) for x in range(1, 5)]
    counts = "\tG1\tG2\n" + "".join(f"{x}x{y}\t{rng.poisson(5)}\t{rng.poisson(5)}\n" for x, y in places)
    spots = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n" + "".join(
        f"{x}\t{y}\t{x}\t{y}\t{200 * x}\t{200 * y}\t1\n" for x, y in places
    )
    picture = tmp_path / "made.jpg"
    Image.fromarray(rng.integers(0, 255, (400, 400, 3), np.uint8)).save(picture)
    for made in serve():
        made.files = {
            COUNTS: gzip.compress(counts.encode()),
            SPOTS: spots.encode(),
            IMAGE: picture.read_bytes(),
            LABELS: b"id\tx\ty\tlabel\n1x1\t1\t1\tcancer\n",
            HIDDEN: picture.read_bytes(),
        }
        listed = made.files[HIDDEN]
        entry = {"path": HIDDEN, "type": "blob", "size": len(listed), "sha": git_sha1(listed)}
        made.files["tree.json"] = json.dumps({"tree": [{"path": "data", "type": "tree"}, entry]}).encode()
        yield made


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


Get = Callable[..., DownloadReport]


@pytest.fixture
def get(site: Site, tmp_path: Path) -> Get:
    """Download section C1, or what else is said, to ``out``."""

    def run(sections: str = "C1", kinds: str | None = None, mirror: str | None = None) -> DownloadReport:
        request = DownloadRequest(
            "her2st",
            tmp_path / "out",
            sections.split(","),
            kinds.split(",") if kinds else None,
            mirror or site.url,
        )
        return download(request, patience=HURRY)

    return run


def left(folder: Path) -> list[str]:
    """What lies in a folder beside the files of C1."""
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
    return sorted(names - {COUNTS, SPOTS, IMAGE, LABELS, "SHA256SUMS", ".mmap-download.lock"})


def test_a_section_is_laid_out_as_the_reader_expects_and_is_not_fetched_twice(
    site: Site, get: Get, tmp_path: Path
) -> None:
    report = get()
    assert report.fetched == [COUNTS, SPOTS, IMAGE, LABELS]
    assert not report.failed
    assert report.received == sum(len(site.files[path]) for path in report.fetched)
    for path in report.fetched:
        assert (tmp_path / "out" / path).read_bytes() == site.files[path]
        assert (tmp_path / "out" / path).stat().st_mode & 0o777 == 0o666 & ~umask()
    assert left(tmp_path / "out") == []
    shown = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "out", check=False
    )
    assert shown.returncode == 0

    slide = open_cohort(f"her2st:{tmp_path / 'out'}")["C1"]
    assert slide.image is not None
    assert slide.labels is not None
    assert len(read_spots(slide)) == 16
    assert read_counts(slide).genes == ("G1", "G2")

    again = get()
    assert again.kept == report.fetched
    assert not again.fetched
    assert again.received == 0
    assert all(len(asked) == 1 for asked in site.ranges.values())


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_kinds_choose_files(get: Get) -> None:
    assert get(kinds="spots,labels").fetched == [SPOTS, LABELS]


@pytest.mark.parametrize("mood", ["break:1000", "stall:1000", "chunked:broken", "weak"])
def test_what_breaks_off_goes_on_from_there(site: Site, get: Get, tmp_path: Path, mood: str) -> None:
    site.moods[IMAGE] = [mood]
    if mood == "weak":  # a weak tag cannot name bytes, a date can
        site.moods[IMAGE] = ["weak", "weak"]
        part = tmp_path / "out" / f"{IMAGE}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(site.files[IMAGE][:1000])
        part.with_name(part.name + ".version").write_text("Sun, 01 Nov 2026 00:00:00 GMT")
    report = get()
    assert not report.failed
    assert (tmp_path / "out" / IMAGE).read_bytes() == site.files[IMAGE]
    last = site.ranges[IMAGE][-1]
    assert last is not None
    assert int(last.removeprefix("bytes=").removesuffix("-")) >= 1000
    assert left(tmp_path / "out") == []


def test_a_later_run_goes_on_too(site: Site, get: Get, tmp_path: Path) -> None:
    site.moods[IMAGE] = ["break:1000", "500", "500", "500"]
    failed = get()
    assert list(failed.failed) == [IMAGE]
    assert "HTTP 500" in failed.failed[IMAGE]
    assert failed.fetched == [COUNTS, SPOTS, LABELS]
    assert (tmp_path / "out" / f"{IMAGE}.part").read_bytes() == site.files[IMAGE][:1000]
    assert not (tmp_path / "out" / IMAGE).exists()
    report = get()
    assert report.fetched == [IMAGE]
    assert site.ranges[IMAGE][-1] == "bytes=1000-"
    assert report.received == len(site.files[IMAGE]) - 1000
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("mood", ["no-range", "wrong-range", "changed", "too long"])
def test_a_file_begins_anew_where_its_pieces_do_not_fit(
    site: Site, get: Get, tmp_path: Path, mood: str
) -> None:
    site.moods[SPOTS] = ["break:100", "500", "500", "500"]
    assert list(get(kinds="spots").failed) == [SPOTS]
    if mood == "changed":
        site.files[SPOTS] = site.files[SPOTS].replace(b"\t1\n", b"\t0\n")
    elif mood == "too long":
        with (tmp_path / "out" / f"{SPOTS}.part").open("ab") as part:
            part.write(b"0" * 10_000)
    else:
        site.moods[SPOTS] = [mood]
    assert get(kinds="spots").fetched == [SPOTS]
    assert (tmp_path / "out" / SPOTS).read_bytes() == site.files[SPOTS]
    assert left(tmp_path / "out") == []


def test_halves_that_do_not_make_the_file_are_fetched_again_in_one_piece(
    site: Site, get: Get, tmp_path: Path
) -> None:
    site.moods[COUNTS] = ["wrong-start:50"]  # a part of other bytes, under the same tag
    assert get(kinds="counts").fetched == [COUNTS]
    assert (tmp_path / "out" / COUNTS).read_bytes() == site.files[COUNTS]
    assert site.ranges[COUNTS] == [None, "bytes=51-", None]


@pytest.mark.parametrize(
    ("path", "moods", "part"),
    [
        (COUNTS, ["404"], "C1.tsv.gz is not there (HTTP 404); see whether the data set has moved"),
        (COUNTS, ["403"], "is refused (HTTP 403 Forbidden)"),
        (COUNTS, ["503"] * 3, "cannot be had now (HTTP 503) (3 attempts); run the same command again later."),
        (COUNTS, ["break:0"] * 3, "broke off after 0 bytes (3 attempts)"),
        (COUNTS, ["break:20", "500", "500", "500"], "(HTTP 500)"),
        (COUNTS, ["silent"] * 3, "sent nothing for 0.3 s (3 attempts); look to the network"),
        (SPOTS, ["encoded"], "is sent compressed (gzip)"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_had_is_one_sentence_and_the_others_are_fetched(
    site: Site, get: Get, tmp_path: Path, path: str, moods: list[str], part: str
) -> None:
    site.moods[path] = [*moods]
    report = get()
    assert list(report.failed) == [path]
    assert part in report.failed[path]
    assert report.failed[path].endswith(".")
    assert "\n" not in report.failed[path]
    assert sorted(report.fetched) == sorted({COUNTS, SPOTS, IMAGE, LABELS} - {path})
    assert not (tmp_path / "out" / path).exists()


def test_a_server_that_gets_well_is_asked_again(site: Site, get: Get) -> None:
    site.moods[COUNTS] = ["500", "429"]
    site.moods[SPOTS] = ["break:100", "break:1"]  # one byte more each time is headway
    site.moods[IMAGE] = ["chunked"]
    site.moods[LABELS] = ["silent"]
    assert get().fetched == [COUNTS, SPOTS, IMAGE, LABELS]


def test_a_server_that_always_breaks_off_is_given_up(site: Site, get: Get, tmp_path: Path) -> None:
    site.moods[IMAGE] = ["break:500"] + ["break:0"] * 20
    report = get(kinds="images")
    assert "broke off after 500 bytes (3 attempts)" in report.failed[IMAGE]
    assert (tmp_path / "out" / f"{IMAGE}.part").stat().st_size == 500


def test_a_gzipped_file_that_is_announced_as_encoded_is_kept_as_it_is(
    site: Site, get: Get, tmp_path: Path
) -> None:
    site.moods[COUNTS] = ["encoded"]
    get(kinds="counts")
    assert (tmp_path / "out" / COUNTS).read_bytes() == site.files[COUNTS]


def test_a_server_that_is_away_is_not_asked_for_every_file(site: Site, get: Get, tmp_path: Path) -> None:
    site.server.shutdown()
    site.server.server_close()
    report = get()
    assert "cannot be reached (3 attempts); look to the network" in report.failed[COUNTS]
    assert report.failed[LABELS].startswith("was not tried, since 127.0.0.1")
    assert len(report.failed) == 4


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        (COUNTS, b"", "it is empty"),
        (COUNTS, b"<html>log in</html>", "no whole gzip file"),
        (COUNTS, gzip.compress(b"\tG\n1x1\t1\n", mtime=0)[:-4], "it ends too early"),
        (COUNTS, gzip.compress(b"<html>", mtime=0), "no tab-separated table"),
        (SPOTS, b"<html>\n<p>\tlog in</p></html>", "no tab-separated table"),
        (IMAGE, b"version https://git-lfs.github.com/spec/v1\n", "it is no JPEG"),
        (IMAGE, b"\xff\xd8\xff\xe0" + b"0" * 5000, "a JPEG without an end"),
    ],
)
def test_what_opens_as_something_else_is_not_kept(
    site: Site, get: Get, tmp_path: Path, path: str, body: bytes, part: str
) -> None:
    site.files[path] = body
    report = get()
    assert list(report.failed) == [path]
    assert part in report.failed[path]
    assert not (tmp_path / "out" / path).exists()
    assert left(tmp_path / "out") == []


def test_other_bytes_than_the_known_ones_are_refused(site: Site, get: Get, tmp_path: Path) -> None:
    site.files["data/ST-spotfiles/B4_selection.tsv"] = site.files[SPOTS]
    site.files["data/ST-cnts/B4.tsv.gz"] = site.files[COUNTS]
    report = get("B4", "spots,counts")
    assert "this is not the file that is known" in report.failed["data/ST-spotfiles/B4_selection.tsv"]
    assert "this is not the table that is known" in report.failed["data/ST-cnts/B4.tsv.gz"]
    assert left(tmp_path / "out") == []
    request = DownloadRequest("cmu-small", tmp_path / "cmu", mirror=site.url)
    site.files["CMU-1-Small-Region.svs"] = b"II*\0"
    assert "SHA-256" in download(request, patience=HURRY).failed["CMU-1-Small-Region.svs"]


def test_what_was_there_and_is_wrong_is_set_aside_and_fetched(site: Site, get: Get, tmp_path: Path) -> None:
    get()
    (tmp_path / "out" / SPOTS).write_bytes(b"x\ty\nmine\t1\n")
    report = get()
    assert report.replaced == report.fetched == [SPOTS]
    assert (tmp_path / "out" / SPOTS).read_bytes() == site.files[SPOTS]
    assert left(tmp_path / "out") == [f"{SPOTS}.old"]
    # Upstream gives other bytes than were recorded: not silently.
    (tmp_path / "out" / SPOTS).unlink()
    site.files[SPOTS] += b"5\t5\t5\t5\t1000\t1000\t1\n"
    assert "take its line out of SHA256SUMS" in get().failed[SPOTS]


def test_files_from_elsewhere_are_checked_and_kept(site: Site, get: Get, tmp_path: Path) -> None:
    for path in (COUNTS, IMAGE):
        (tmp_path / "out" / path).parent.mkdir(parents=True)
    (tmp_path / "out" / COUNTS).write_bytes(site.files[COUNTS])
    (tmp_path / "out" / IMAGE).write_bytes(site.files[IMAGE][:-1000])
    report = get()
    assert report.kept == [COUNTS]
    assert report.replaced == [IMAGE]
    assert report.fetched == [SPOTS, IMAGE, LABELS]


def test_an_image_whose_name_is_not_known_is_found_in_the_servers_list(
    site: Site, get: Get, tmp_path: Path
) -> None:
    assert get("A1", "images").fetched == [HIDDEN]
    assert (tmp_path / "out" / HIDDEN).read_bytes() == site.files[HIDDEN]
    assert left(tmp_path / "out") == [HIDDEN]
    del site.files["tree.json"]  # what was fetched needs no list
    assert get("A1", "images").kept == [HIDDEN]
    report = get("A1,A2,C1", "images")
    assert report.kept == [HIDDEN]
    assert report.fetched == [IMAGE]
    assert "is in a list of files that cannot be had" in report.failed["data/ST-imgs/A/A2/"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"sha": "0" * 40}, "the server's own list of files names another"),
        ({"path": "data/ST-imgs/A/A1/../../../../evil.jpg"}, "lists no image of this section"),
        ({"size": None, "type": None}, "lists no image"),
        (None, "is no list of files as GitHub gives it"),
    ],
)
def test_a_list_is_not_trusted(
    site: Site, get: Get, tmp_path: Path, change: dict[str, str] | None, part: str
) -> None:
    tree = json.loads(site.files["tree.json"])
    tree["tree"][1] |= change or {}
    site.files["tree.json"] = json.dumps(tree if change else [1]).encode()
    report = get("A1", "images")
    assert len(report.failed) == 1
    assert part in next(iter(report.failed.values()))
    assert left(tmp_path) == ["made.jpg", "out/.mmap-download.lock"]


def test_the_proxy_of_the_environment_is_used(
    site: Site, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, site.url)
    assert get(mirror="http://her2st.invalid/copy/").failed  # the proxy was asked, and has no such files
    assert f"copy/{SPOTS}" in site.ranges
    assert get(mirror="http://her2st.invalid").fetched == [COUNTS, SPOTS, IMAGE, LABELS]
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "out" / SPOTS).unlink()
    assert "through the proxy" in get(mirror="http://her2st.invalid").failed[SPOTS]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_one_sentence_and_ends_the_run(site: Site, get: Get, tmp_path: Path) -> None:
    part = tmp_path / "out" / f"{COUNTS}.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    report = get()
    assert report.failed[COUNTS].startswith("the disk of ")
    assert report.failed[COUNTS].endswith("is full; make room, and the same command goes on from there.")
    assert report.failed[SPOTS] == "was not tried, since the disk is full."
    assert not (tmp_path / "out" / COUNTS).exists()


def test_a_place_that_cannot_be_written_is_said(site: Site, get: Get, tmp_path: Path) -> None:
    (tmp_path / "out" / IMAGE).mkdir(parents=True)
    report = get()
    assert "cannot be written (Is a directory)" in report.failed[IMAGE]
    assert report.fetched == [COUNTS, SPOTS, LABELS]
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="choose another folder with --out"):
        download(DownloadRequest("her2st", tmp_path / "file" / "below", mirror=site.url))


def test_two_runs_do_not_write_one_folder(get: Get, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lock = FileLock(str(tmp_path / "out" / ".mmap-download.lock"))
    with lock, pytest.raises(RequestError, match="Another download writes to"):
        get()


def test_progress_is_told_in_bytes_of_all_files(site: Site, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    names: list[str] = []

    class Ear:
        def begin(self, files: int) -> None:
            assert files == 4

        def file(self, name: str) -> None:
            names.append(name)

        def moved(self, done: int, total: int) -> None:
            assert 0 <= done <= total
            told.append((done, total))

    download(DownloadRequest("her2st", tmp_path / "out", ["C1"], mirror=site.url), Ear(), HURRY)
    assert names == [Path(path).name for path in (COUNTS, SPOTS, IMAGE, LABELS)]
    whole = sum(len(site.files[path]) for path in (COUNTS, SPOTS, IMAGE, LABELS))
    assert told[-1] == (whole, whole)


def test_the_registry_is_of_36_sections() -> None:
    dataset = DATASETS["her2st"]
    assert len(dataset.sections) == 36
    choice = choose(dataset, None, None)
    assert len({file.path for file in choice.files}) == len(choice.files)
    kinds = {kind: sum(file.kind == kind for file in choice.files) for kind in KINDS}
    assert kinds == {"counts": 36, "spots": 36, "images": 7, "labels": 8}
    assert len(choice.unnamed) == 36 - 7
    for file in choice.files:
        assert file.sha256 is None or len(file.sha256) == 64
        assert file.content_sha256 is None or file.path.endswith(".gz")


def test_the_registry_knows_the_real_files(shared: Path, site: Site, tmp_path: Path) -> None:
    root = shared / "data" / "her2st"
    site.files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    names = ["B4", "C2", "C3", "C4"]
    report = download(DownloadRequest("her2st", tmp_path / "out", names, mirror=site.url), patience=HURRY)
    assert not report.failed
    assert len(report.fetched) == 12
    cohort = open_cohort(f"her2st:{tmp_path / 'out'}")
    assert cohort.names == tuple(names)
    assert len(read_spots(cohort["C4"])) == 184
    slide = shared / "data" / "wsi" / "CMU-1-Small-Region.svs"
    site.files[slide.name] = slide.read_bytes()
    assert not download(DownloadRequest("cmu-small", tmp_path / "cmu", mirror=site.url)).failed


# The command, as a user types it.


def mmap(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmap_st", "download", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_command(site: Site, tmp_path: Path) -> None:
    words = ("her2st", "--sections", "c1", "--mirror", site.url)
    shown = mmap(*words, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert shown.stdout.startswith("files: 4 fetched; 0.")
    assert shown.stdout.splitlines()[-1] == "her2st"
    assert (tmp_path / "her2st" / IMAGE).is_file()
    site.moods[SPOTS] = ["404"]
    (tmp_path / "her2st" / SPOTS).write_text("mine")
    failed = mmap(*words, cwd=tmp_path)
    assert failed.returncode == 1
    assert "3 there before, 1 failed" in failed.stdout
    assert "is not there (HTTP 404)" in failed.stdout
    assert f"it is now {SPOTS}.old" in failed.stderr


def test_the_list(tmp_path: Path) -> None:
    shown = mmap("--list", cwd=tmp_path)
    assert shown.returncode == 0
    assert "her2st" in shown.stdout
    assert "cmu-small" in shown.stdout
    assert mmap("her2st", "--list", cwd=tmp_path).stdout.count("\n") > 36
    assert "CMU-1-Small-Region.svs" in mmap("cmu-small", "--list", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "Name a data set"),
        (("her2s",), "There is no data set her2s (did you mean her2st?)"),
        (("her2s", "--list"), "did you mean her2st"),
        (("her2st", "--sections", "B44"), "has no section B44 (did you mean B4"),
        (("her2st", "--sections", ","), "No section is named"),
        (("her2st", "--what", "image"), "has no kind of file image (did you mean images?)"),
        (("her2st", "--what", "labels", "--sections", "B4"), "has no labels of B4; it has them of A1, B1"),
        (("cmu-small", "--sections", "B4"), "leave --sections and --what away"),
        (("her2st", "--mirror", "ftp://here"), "is no address"),
    ],
)
def test_requests_that_cannot_be_met_do_nothing_and_exit_2(
    tmp_path: Path, words: tuple[str, ...], part: str
) -> None:
    shown = mmap(*words, cwd=tmp_path)
    assert shown.returncode == 2
    assert part in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_a_part_and_the_same_command_goes_on(site: Site, tmp_path: Path) -> None:
    site.moods[IMAGE] = ["stall:1000"]
    words = ["her2st", "--sections", "C1", "--mirror", site.url]
    process = subprocess.Popen(
        [sys.executable, "-m", "mmap_st", "download", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    part = tmp_path / "her2st" / f"{IMAGE}.part"
    while not (part.exists() and part.stat().st_size == 1000) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 130
    assert complaint.splitlines()[-1].startswith("error: stopped; what was finished is kept")
    assert "Traceback" not in complaint
    assert left(tmp_path / "her2st") == [f"{IMAGE}.part", f"{IMAGE}.part.version"]
    done = mmap(*words, cwd=tmp_path)
    assert done.returncode == 0
    assert "2 fetched, 2 there before" in done.stdout
    assert site.ranges[IMAGE] == [None, "bytes=1000-"]
    assert left(tmp_path / "her2st") == []


def test_a_terminal_sees_a_bar(site: Site, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "mmap_st",
        "download",
        "her2st",
        "--sections",
        "C1",
        "--mirror",
        site.url,
    ]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=slave, cwd=tmp_path, env=environment
    )
    os.close(slave)
    seen = b""
    with contextlib.suppress(OSError):  # so ends what a terminal shows
        while more := os.read(master, 1 << 16):
            seen += more
    os.close(master)
    assert process.wait() == 0
    assert b"of 4 files)" in seen


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, mmap_st.cli, mmap_st.data.download\n"
        "print(sorted({'requests', 'urllib3', 'pooch', 'numpy', 'polars'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
