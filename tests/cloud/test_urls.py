"""URLs as places, and what an object store answers."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from mmap_st.errors import MissingDependencyError, RemoteError, RequestError
from mmap_st.object_stores import Bucket, Conflict, NoConditions
from mmap_st.urls import Url, place_of, url_of
from tests.s3_server import S3Server


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://lab/a/features.zarr", "s3://lab/a/features.zarr"),
        ("S3://lab/a/", "s3://lab/a"),
        (Path("s3://lab/a"), "s3://lab/a"),
        ("https://host:8080/a b.csv", "https://host:8080/a b.csv"),
        (Url("gs://lab/x"), "gs://lab/x"),
    ],
)
def test_places_on_servers_are_known_for_what_they_are(text: object, url: str) -> None:
    assert str(url_of(text)) == url


@pytest.mark.parametrize("text", ["features.zarr", "/data/s3/x", "her2st:her2st", "s3", "C:/x", Path("s3")])
def test_paths_are_no_urls(text: object) -> None:
    assert url_of(text) is None
    assert place_of(str(text)) == Path(str(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://me:secret@lab/x", "holds a name or a password"),
        ("s3://lab", "names no file or folder"),
        ("s3:///x", "names no file or folder"),
        ("s3://lab//x", "has an empty part"),
        ("s3://lab/../x", "has an empty part, or dots"),
        ("https://host/x.csv?X-Amz-Signature=secret", "is a signed link"),
    ],
)
def test_urls_that_cannot_be_used_are_refused_and_their_secrets_not_shown(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        url_of(text)
    assert "secret" not in str(refused.value)


def test_parts_of_a_url() -> None:
    url = Url("s3://lab/a/features.zarr")
    assert (url.scheme, url.name, str(url.parent)) == ("s3", "features.zarr", "s3://lab/a")
    assert str(url / "C2/zarr.json") == "s3://lab/a/features.zarr/C2/zarr.json"
    assert str(url.with_name("b")) == "s3://lab/a/b"
    assert url.lists
    assert not Url("https://h/x").lists


def test_objects_are_written_read_listed_and_removed(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("a/one", b"hello")
    (tmp_path / "file").write_bytes(b"from a file")
    bucket.put("two", tmp_path / "file")
    assert bucket.get("a/one") == b"hello"
    assert (bucket.get("a/one", 1, 3), bucket.get("a/one", 3)) == (b"el", b"lo")
    assert bucket.get("none") is None
    assert bucket.stat("none") is None
    assert sorted(bucket.keys()) == [("a/one", 5), ("two", 11)]
    assert list(bucket.keys("a")) == [("a/one", 5)]
    assert bucket.folders() == ["a"]
    assert Bucket(bucket.url / "a").get("one") == b"hello"
    bucket.delete(["a/one", "none"])
    assert list(bucket.keys()) == [("two", 11)]


def test_a_conditional_write_sees_what_others_wrote(bucket: Bucket) -> None:
    first = bucket.put_if("lease", b"1", None)
    with pytest.raises(Conflict):
        bucket.put_if("lease", b"2", None)
    bucket.put_if("lease", b"2", first)
    with pytest.raises(Conflict):
        bucket.put_if("lease", b"3", first)
    assert bucket.get("lease") == b"2"


def test_a_server_without_conditional_writes_says_so(bucket: Bucket, server: S3Server) -> None:
    server.fault = lambda method, path, request: (
        501 if method == "PUT" and {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & set(request) else None
    )
    with pytest.raises(NoConditions):
        bucket.put_if("lease", b"1", None)
    bucket.put("lease", b"1")


def test_faults_of_a_moment_are_tried_again(bucket: Bucket, server: S3Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    faults: itertools.cycle[Any] = itertools.cycle([503, None, "drop", None, 0.05, 500, None])
    server.fault = lambda method, path, request: next(faults)
    bucket.put("x", content)
    assert bucket.get("x") == content
    bucket.download("x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == content
    assert b"".join(bucket.pieces("x", size=100_000)) == content


def test_what_is_replaced_while_it_is_read_is_refused(bucket: Bucket) -> None:
    bucket.put("x", b"a" * 100)
    pieces = bucket.pieces("x", size=50)
    next(pieces)
    bucket.put("x", b"b" * 100)
    with pytest.raises(RemoteError, match="was changed while it was read"):
        list(pieces)


def test_what_a_server_refuses_is_one_sentence(bucket: Bucket, server: S3Server, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="s3://lab/place/none does not exist"):
        bucket.download("none", tmp_path / "x")
    with pytest.raises(RemoteError, match=r"s3://nolab/x cannot be listed \(NoSuchBucket\)"):
        Bucket(Url("s3://nolab/x")).folders()
    server.fault = lambda method, path, request: 403
    for tried in (lambda: bucket.get("x"), lambda: bucket.put("x", b""), lambda: bucket.folders()):
        with pytest.raises(RemoteError, match="refuses these credentials") as refused:
            tried()
        assert "AKIATEST" not in str(refused.value)


def test_missing_credentials_are_said_to_be_missing(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(RemoteError, match="no credentials were found"):
        Bucket(Url("s3://lab/x")).get("y")


def test_without_obstore_a_url_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(MissingDependencyError, match=r"mmap-st\[cloud\]"):
        Bucket(Url("s3://lab/x")).get("y")
