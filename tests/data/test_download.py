"""Downloads from a server on this machine, which fails in the ways that servers do."""

import contextlib
import gzip
import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

from mmap_st import cli
from mmap_st.data.download import DATASETS, KINDS, DownloadReport, download, web
from mmap_st.data.download.datasets import choose
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.errors import RequestError
from mmap_st.progress import Silent

COUNTS = "data/ST-cnts/C1.tsv.gz"
SPOTS = "data/ST-spotfiles/C1_selection.tsv"
IMAGE = "data/ST-imgs/C/C1/5714_HE_BT_C1.jpg"
LABELS = "data/ST-pat/lbl/C1_labeled_coordinates.tsv"
HIDDEN = "data/ST-imgs/A/A1/a section.jpg"
JPEG = b"\xff\xd8\xff\xe0" + bytes(100_000) + b"\xff\xd9"
MATRIX = "\tG1\tG2\n" + "".join(f"{x}x{y}\t{x}\t{y}\n" for y in range(1, 5) for x in range(1, 5))
TABLE = "x\ty\tpixel_x\tpixel_y\tselected\n" + "".join(
    f"{x}\t{y}\t{200 * x}\t{200 * y}\t1\n" for y in range(1, 5) for x in range(1, 5)
)


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Site:
    """A server of files; `faults` says how it answers the next requests for a path."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.release = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path).lstrip("/")
                site.asked.append(path)
                faults = site.faults.get(path, [])
                fault, body = faults.pop(0) if faults else "", site.files.get(path)
                if fault.isdecimal() or body is None:
                    self.send_error(int(fault or 404))
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if fault else body)
                self.wfile.flush()
                if fault == "stall":
                    site.release.wait(10)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server with section C1 and the image of A1, of which no hashes are known here."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    monkeypatch.setattr(web, "_TIMEOUT_S", (2.0, 0.3))
    made = Site()
    counts = gzip.compress(MATRIX.encode(), mtime=0)
    made.files = {COUNTS: counts, SPOTS: TABLE.encode(), IMAGE: JPEG, LABELS: b"x\ty\tl\n", HIDDEN: JPEG}
    entry = {"path": HIDDEN, "type": "blob", "size": len(JPEG), "sha": git_sha1(JPEG)}
    made.files["tree.json"] = json.dumps({"tree": [{"path": "data", "type": "tree"}, entry]}).encode()
    yield made
    made.close()


Get = Callable[..., DownloadReport]


@pytest.fixture
def get(site: Site, tmp_path: Path) -> Get:
    """Download section C1, or another, to ``out``."""

    def run(sections: str = "C1", kinds: str = ",".join(KINDS)) -> DownloadReport:
        return download(
            "her2st",
            tmp_path / "out",
            sections=sections.split(","),
            kinds=kinds.split(","),
            mirror=site.url,
        )

    return run


def extra_files(folder: Path) -> list[str]:
    """What is in a folder in addition to the files of C1."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return sorted(names - {COUNTS, SPOTS, IMAGE, LABELS, "SHA256SUMS", ".mmap-download.lock"})


def test_a_section_is_read_by_its_reader_and_not_fetched_twice(site: Site, get: Get, tmp_path: Path) -> None:
    report = get()
    assert report.fetched == [COUNTS, SPOTS, IMAGE, LABELS]
    assert not report.failed
    assert report.received == sum(len(site.files[path]) for path in report.fetched)
    (tmp_path / "usual").touch()
    for path in report.fetched:
        assert (tmp_path / "out" / path).read_bytes() == site.files[path]
        assert (tmp_path / "out" / path).stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert extra_files(tmp_path / "out") == []
    sums = [shutil.which("sha256sum") or "", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(sums, cwd=tmp_path / "out", check=False).returncode == 0
    slide = open_cohort(f"her2st:{tmp_path / 'out'}")["C1"]
    assert slide.image is not None
    assert slide.labels is not None
    assert len(read_spots(slide)) == 16
    assert read_counts(slide).genes == ("G1", "G2")
    again = get()
    assert again.kept == report.fetched
    assert len(site.asked) == 4


@pytest.mark.parametrize("fault", ["500", "429", "cut", "stall"])
def test_a_passing_fault_is_retried(site: Site, get: Get, tmp_path: Path, fault: str) -> None:
    site.faults[IMAGE] = [fault, fault]
    assert IMAGE in get().fetched
    assert (tmp_path / "out" / IMAGE).read_bytes() == JPEG
    assert extra_files(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("faults", "requests", "sentence"),
    [
        (["404"], 1, "HTTP 404 Not Found); check whether the data set has moved"),
        (["403"], 1, "HTTP 403 Forbidden"),
        (["503"] * 5, 5, "cannot be fetched now (HTTP 503 Service Unavailable); run the same command again"),
        (["cut"] * 5, 5, "cannot be fetched (ChunkedEncodingError)"),
    ],
)
def test_a_file_that_cannot_be_had_is_one_sentence_and_the_others_are_fetched(
    site: Site, get: Get, tmp_path: Path, faults: list[str], requests: int, sentence: str
) -> None:
    site.faults[SPOTS] = faults
    report = get()
    assert list(report.failed) == [SPOTS]
    assert sentence in report.failed[SPOTS]
    assert "\n" not in report.failed[SPOTS]
    assert report.fetched == [COUNTS, IMAGE, LABELS]
    assert site.asked.count(SPOTS) == requests
    assert not (tmp_path / "out" / SPOTS).exists()
    assert extra_files(tmp_path / "out") == []
    assert get().fetched == [SPOTS]


def test_a_server_that_is_down_is_not_asked_for_every_file(site: Site, get: Get) -> None:
    site.close()
    report = get()
    assert "cannot be fetched (ConnectionError); check the network" in report.failed[COUNTS]
    assert report.failed[LABELS].startswith("was not tried, since 127.0.0.1")
    assert len(report.failed) == 4


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        (COUNTS, b"", "not a tab-separated table"),
        (COUNTS, b"<html>log in</html>", "not a whole gzip file"),
        (COUNTS, gzip.compress(b"\tG\n1x1\t1\n", mtime=0)[:-4], "not a whole gzip file"),
        (COUNTS, gzip.compress(b"<html>\n", mtime=0), "not a tab-separated table"),
        (SPOTS, b"<html>\t<p>log in</p></html>\n", "not a tab-separated table"),
        (IMAGE, b"version https://git-lfs.github.com/spec/v1\n", "not a JPEG"),
        (IMAGE, JPEG[:-1000], "a truncated JPEG"),
        ("data/ST-spotfiles/B4_selection.tsv", TABLE.encode(), "this is not the file that is known"),
        ("data/ST-cnts/B4.tsv.gz", gzip.compress(MATRIX.encode(), mtime=0), "this is not the known table"),
    ],
)
def test_what_is_another_file_is_not_kept(
    site: Site, get: Get, tmp_path: Path, path: str, body: bytes, sentence: str
) -> None:
    site.files[path] = body
    report = get("B4" if "B4" in path else "C1")
    assert sentence in report.failed[path]
    assert extra_files(tmp_path / "out") == []
    assert not (tmp_path / "out" / path).exists()


def test_what_was_there_and_is_wrong_is_set_aside(site: Site, get: Get, tmp_path: Path) -> None:
    (tmp_path / "out" / COUNTS).parent.mkdir(parents=True)
    (tmp_path / "out" / COUNTS).write_bytes(site.files[COUNTS])  # from elsewhere
    assert get().kept == [COUNTS]
    (tmp_path / "out" / SPOTS).write_bytes(b"x\ty\nmine\t1\n")
    report = get()
    assert report.replaced == report.fetched == [SPOTS]
    assert extra_files(tmp_path / "out") == [f"{SPOTS}.old"]
    # Where the server has changed, that is not accepted in silence.
    (tmp_path / "out" / SPOTS).unlink()
    site.files[SPOTS] += b"5\t5\t1000\t1000\t1\n"
    assert "delete its line in SHA256SUMS" in get().failed[SPOTS]


def test_an_image_whose_name_is_not_known_is_found_in_the_list(site: Site, get: Get, tmp_path: Path) -> None:
    assert get("A1", "images").fetched == [HIDDEN]
    del site.files["tree.json"]  # not needed for what was fetched
    assert get("A1", "images").kept == [HIDDEN]
    report = get("A1,A2,C1", "images")
    assert (report.kept, report.fetched) == ([HIDDEN], [IMAGE])
    assert "is in a list of files that cannot be fetched" in report.failed["data/ST-imgs/A/A2/"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sha": "0" * 40}, "the server's own list of files names another"),
        ({"path": "data/ST-imgs/A/A1/../../../../evil.jpg"}, "lists no image of this section"),
        (None, "is not a list of files as GitHub gives it"),
    ],
)
def test_a_list_is_not_trusted(
    site: Site, get: Get, tmp_path: Path, change: dict[str, str] | None, sentence: str
) -> None:
    tree = json.loads(site.files["tree.json"])
    tree["tree"][1] |= change or {}
    site.files["tree.json"] = json.dumps(tree if change else [1]).encode()
    assert sentence in next(iter(get("A1", "images").failed.values()))
    assert extra_files(tmp_path) == ["out/.mmap-download.lock"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_ends_the_run(site: Site, get: Get, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        Path, "unlink", lambda path: path.symlink_to("/dev/full") if not os.unlink(path) else 0
    )
    report = get()
    assert "is full; make room and run the same command again." in report.failed[COUNTS]
    assert report.failed[SPOTS] == "was not tried, since the disk is full."
    assert not (tmp_path / "out" / COUNTS).exists()


def test_folders_that_cannot_be_written(site: Site, get: Get, tmp_path: Path) -> None:
    (tmp_path / "out" / IMAGE).mkdir(parents=True)
    report = get()
    assert "cannot be written (Is a directory)" in report.failed[IMAGE]
    assert report.fetched == [COUNTS, SPOTS, LABELS]
    with FileLock(tmp_path / "out" / ".mmap-download.lock"), pytest.raises(RequestError, match="Another"):
        get()
    with pytest.raises(RequestError, match="which is a file; name another folder"):
        download("her2st", tmp_path / "out" / SPOTS / "below", mirror=site.url)


def test_progress_is_reported_in_bytes_of_all_files(site: Site, tmp_path: Path) -> None:
    class Recorder(Silent):
        done = total = 0

        def __init__(self) -> None:
            self.names: list[str] = []

        def start_item(self, name: str) -> None:
            self.names.append(name)

        def set_total(self, total: int) -> None:
            self.total = total

        def advance(self, amount: int) -> None:
            self.done += amount
            assert 0 <= self.done <= self.total

    heard = Recorder()
    site.faults[IMAGE] = ["cut"]  # bytes of a failed attempt are taken back
    download("her2st", tmp_path / "out", sections=["C1"], mirror=site.url, progress=heard)
    paths = (COUNTS, SPOTS, IMAGE, LABELS)
    assert heard.names == [Path(path).name for path in paths]
    assert heard.done == heard.total == sum(len(site.files[path]) for path in paths)


def test_the_registry_knows_the_real_files(shared: Path, site: Site, get: Get, tmp_path: Path) -> None:
    root = shared / "data" / "her2st"
    site.files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    report = get("B4,C2,C3,C4")
    assert not report.failed
    assert len(report.fetched) == 12
    assert len(read_spots(open_cohort(f"her2st:{tmp_path / 'out'}")["C4"])) == 184
    slide = shared / "data" / "wsi" / "CMU-1-Small-Region.svs"
    site.files[slide.name] = slide.read_bytes()
    assert download("cmu-small", tmp_path / "cmu", mirror=site.url).fetched == [slide.name]


def test_the_registry_has_36_sections() -> None:
    files, unnamed = choose(DATASETS["her2st"], None, None)
    assert len(DATASETS["her2st"].sections) == 36
    kinds = {kind: sum(file.kind == kind for file in files) for kind in KINDS}
    assert kinds == {"counts": 36, "spots": 36, "images": 7, "labels": 8}
    assert len(unnamed) == 36 - 7


# The command, as a user types it.


@pytest.fixture
def mmap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["mmap", "download", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


def test_the_command(site: Site, tmp_path: Path, mmap) -> None:
    words = ("her2st", "--sections", "c1", "--mirror", site.url)
    status, output, errors = mmap(*words)
    assert (status, errors) == (0, "")
    assert output.startswith("files: 4 fetched; 0.")
    assert output.splitlines()[-1] == "her2st"
    site.faults[SPOTS] = ["404"]
    (tmp_path / "her2st" / SPOTS).write_text("mine")
    status, output, errors = mmap(*words)
    assert status == 1
    assert "3 there before, 1 failed" in output
    assert "HTTP 404" in output
    assert f"it is now {SPOTS}.old" in errors


def test_a_terminal_sees_a_bar(site: Site, mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, shown_to = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with open(shown_to, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        mmap("her2st", "--sections", "C1", "--mirror", site.url)
        stderr.flush()
    shown = b""
    with contextlib.suppress(OSError):  # the end of what a terminal was sent
        while b"of 4 files)" not in shown:
            shown += os.read(terminal, 1 << 16)
    assert b"of 4 files)" in shown
    os.close(terminal)


def test_the_list(mmap) -> None:
    assert all(name in mmap("--list")[1] for name in DATASETS)
    assert mmap("her2st", "--list")[1].count("\n") > 36
    assert "CMU-1-Small-Region.svs" in mmap("cmu-small", "--list")[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "Name a data set"),
        ("her2s", "There is no data set her2s (did you mean her2st, hest?)"),
        ("her2s --list", "did you mean her2st"),
        ("her2st --sections B44", "has no section B44 (did you mean B4"),
        ("her2st --sections ,", "names nothing; give names separated by commas"),
        ("her2st --what image", "has no kind of file image (did you mean images?)"),
        ("her2st --what labels --sections B4", "has no labels of B4; it has them of A1, B1"),
        ("cmu-small --sections B4", "leave out --sections and --what"),
        ("her2st --mirror ftp://here", "is not an address"),
        ("her2st --ids TENX95", "her2st has no samples with ids: leave out --ids"),
        ("hest", "name samples, such as --ids TENX95"),
        ("hest --ids TENX95 --mirror https://here", "--mirror is not for hest"),
    ],
)
def test_requests_that_cannot_be_met_do_nothing_and_exit_2(
    tmp_path: Path, mmap, words: str, sentence: str
) -> None:
    status, _, errors = mmap(*words.split())
    assert status == 2
    assert sentence in errors
    assert len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing_that_looks_finished(site: Site, tmp_path: Path, mmap) -> None:
    site.faults[IMAGE] = ["stall"]
    words = ["her2st", "--sections", "C1", "--mirror", site.url]
    process = subprocess.Popen(
        [sys.executable, "-m", "mmap_st", "download", *words],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while IMAGE not in site.asked and process.poll() is None:
        threading.Event().wait(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("error: stopped; what was finished is saved")
    assert "Traceback" not in errors
    assert extra_files(tmp_path / "her2st") == []
    assert not (tmp_path / "her2st" / IMAGE).exists()
    assert "2 fetched, 2 there before" in mmap(*words)[1]


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, mmap_st.cli, mmap_st.data.download\n"
        "print(sorted({'requests', 'pooch', 'huggingface_hub', 'numpy', 'polars'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
