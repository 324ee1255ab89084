"""What the hub can answer, replayed by a small server: each becomes one sentence that says what to do."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
from huggingface_hub import constants, errors
from safetensors.torch import save

from mmap_st.errors import EncoderError
from mmap_st.extract.encoders import build_encoder, encoder_spec
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.spec import Hub
from mmap_st.extract.encoders.weights import cached_file, fetch
from mmap_st.hub import HubRequest, hub_sentence
from tests.fake_hub import GATED, FakeHub, look_at, running_hub

REPO = Hub("org/model")
UNI = HubRequest("uni", "org/model")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub(tmp_path / "hub", monkeypatch) as fake:
        yield fake


SITUATIONS: dict[str, tuple[int, dict[str, str], str | None, str]] = {
    "gated, no token": (401, GATED, None, r"uni is gated: ask for access at http\S+/org/model, then log in with `hf auth login`"),
    "gated, no token, as 403": (403, GATED, None, "uni is gated: ask for access"),
    "gated, not approved": (403, GATED, "hf_x", "your account has no access yet: ask for it at"),
    "gated, not approved, as 401": (401, GATED, "hf_x", "your account has no access yet"),
    "no such repository": (404, {"X-Error-Code": "RepoNotFound"}, "hf_x", "does not exist, or is private and you are not logged in; check the name"),
    "private, no token": (401, {"X-Error-Code": "RepoNotFound"}, None, "is private and you are not logged in"),
    "bare 401": (401, {}, None, "the hub asks who you are; log in"),
    "token not valid": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "hf_x", "does not accept your token; renew it"),
    "token without permission": (403, {}, "hf_x", "your token may not read .*permission to read gated repositories"),
    "switched off": (403, {"X-Error-Message": "Access to this resource is disabled."}, None, "the hub has disabled"),
    "no such revision": (404, {"X-Error-Code": "RevisionNotFound"}, None, "has no revision main"),
    "no such file": (404, {"X-Error-Code": "EntryNotFound"}, None, "has none of the files model.safetensors, pytorch_model.bin; see there"),
    "too many requests": (429, {}, None, "too many requests from here; wait some minutes"),
    "out of order": (500, {}, None, r"the hub has an error \(status 500\); run the same command again later"),
    "bad gateway": (502, {}, None, r"the hub has an error \(status 502\)"),
    "unavailable": (503, {}, None, r"the hub has an error \(status 503\)"),
    "bad request": (400, {}, None, r"refused .*\(status 400"),
    "gone": (410, {}, None, r"refused .*\(status 410"),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_answer_of_the_hub_is_one_sentence_that_says_what_to_do(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, situation: str
) -> None:
    status, headers, token, sentence = SITUATIONS[situation]
    hub.answer = (status, headers)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(EncoderError, match=sentence) as error:
        fetch(REPO, "uni")
    said = str(error.value)
    assert said.startswith("uni")
    assert said.endswith(
        (
            "give the weights with --weights FILE.",
            "(HF_ENDPOINT names another hub, where a mirror is reachable).",
        )
    )
    assert "\n" not in said
    assert error.value.__cause__ is not None


def test_a_dataset_is_asked_for_at_its_own_page(hub: FakeHub) -> None:
    hub.answer = (403, GATED)
    with pytest.raises(EncoderError, match=r"/datasets/org/model, then"):
        fetch(Hub("org/model", kind="dataset"), "chief")


def test_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.utils._http.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match="HF_HUB_OFFLINE forbids fetching it; unset it, copy org/model"):
        fetch(REPO, "uni")
    assert not hub.asked


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_at("http://127.0.0.1:9", tmp_path, monkeypatch)  # nobody listens there
    with pytest.raises(EncoderError, match=r"cannot be reached from here; run the same command again later"):
        fetch(REPO, "uni")


def test_a_hub_whose_name_is_not_known_is_not_asked_for_half_a_minute(tmp_path: Path, monkeypatch) -> None:
    look_at("http://no-such-host.invalid", tmp_path, monkeypatch)

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    with pytest.raises(EncoderError, match=r"no-such-host.invalid cannot be reached from here"):
        fetch(REPO, "uni")


def test_a_name_that_is_none(hub: FakeHub) -> None:
    with pytest.raises(EncoderError, match="'org/mo del' is not a name of a hub repository; write ORG/NAME"):
        fetch(Hub("org/mo del"), "hf-hub:org/mo del")


def test_a_download_that_is_cut_leaves_nothing_that_counts(hub: FakeHub) -> None:
    hub.put("org/model", "model.safetensors", bytes(100_000))
    hub.cut = True
    with pytest.raises(EncoderError, match="uni: the hub at"):
        fetch(REPO, "uni")
    assert cached_file(REPO) is None
    hub.cut = False
    assert fetch(REPO, "uni").read_bytes() == bytes(100_000)


def test_a_cache_that_cannot_be_written(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("org/model", "model.safetensors", b"weights")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(
        EncoderError, match=r"the cache \S+ cannot be written .*; set HF_HOME to another place"
    ):
        fetch(REPO, "uni")


def test_a_full_disk(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(EncoderError, match=r"No space left on device.*set HF_HOME"):
        fetch(REPO, "uni")


def test_errors_that_no_server_gives() -> None:
    no_token = hub_sentence(errors.LocalTokenNotFoundError("none"), UNI)
    assert no_token.startswith("uni: no token is stored; log in")
    assert "HF_HUB_OFFLINE forbids" in hub_sentence(errors.OfflineModeIsEnabled("off"), UNI)
    lonely = hub_sentence(errors.LocalEntryNotFoundError("not cached"), UNI)
    assert "cannot be reached from here" in lonely
    assert "does not answer (odd)" in hub_sentence(RuntimeError("odd"), UNI)


# What is fetched


def test_the_first_name_that_there_is_is_fetched_once(hub: FakeHub) -> None:
    hub.put("org/model", "pytorch_model.bin", b"weights")
    assert cached_file(REPO) is None
    found = fetch(REPO, "uni")
    assert found.read_bytes() == b"weights"
    assert cached_file(REPO) == found
    assert [path.rpartition("/")[2] for path in hub.asked][:2] == ["model.safetensors", "pytorch_model.bin"]


@pytest.mark.parametrize("name", ["hibou-b", "hibou-l", "genbio-pathfm", "conch-v1.5"])
def test_code_comes_with_the_weights_that_need_it(hub: FakeHub, name: str) -> None:
    declared = ENCODERS[name].hub
    assert declared is not None
    for file in ("model.safetensors", "config.json", "modeling.py", "picture.png"):
        hub.put(declared.repo, file, file.encode())
    found = fetch(declared, name)
    assert {file.name for file in found.parent.iterdir()} == {
        "model.safetensors",
        "config.json",
        "modeling.py",
    }
    assert cached_file(declared) == found
    (found.parent / "modeling.py").unlink()
    assert cached_file(declared) is None  # half of it is as good as nothing


def test_the_configuration_comes_with_the_weights_of_transformers(hub: FakeHub) -> None:
    for file in ("model.safetensors", "config.json"):
        hub.put("kaiko-ai/midnight", file, file.encode())
    assert (fetch(ENCODERS["midnight-12k"].hub, "midnight-12k").parent / "config.json").is_file()


def test_an_encoder_of_the_hub_is_built_from_its_configuration(hub: FakeHub) -> None:
    model = timm.create_model("test_vit", num_classes=7, global_pool="avg")
    config = {
        "architecture": "test_vit",
        "num_classes": 7,
        "global_pool": "avg",
        "pretrained_cfg": {
            "input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "license": "mit",
            "interpolation": "bilinear",
        },
    }  # fmt: skip
    hub.put("org/model", "config.json", json.dumps(config).encode())
    hub.put(
        "org/model", "model.safetensors", save({k: v.contiguous() for k, v in model.state_dict().items()})
    )
    spec = encoder_spec("hf-hub:org/model")
    assert (spec.input_px, spec.preprocessing.mean, spec.licence) == (160, (0.1, 0.2, 0.3), "mit")
    assert str(spec.preprocessing).startswith("Resize(182, bilinear), CenterCrop(160)")
    encoder = build_encoder(spec, device="cpu")
    assert encoder.width == model.num_features
    assert encoder.spec.recipe()["arch_kwargs"] == {"global_pool": "avg"}


@pytest.mark.parametrize(
    "config",
    [
        b"{}",
        b"not json",
        b'{"architecture": "test_vit"}',
        b"[]",
        b'{"architecture": "test_vit", "input_size": 160, "mean": [0, 0, 0], "std": [1, 1, 1]}',
        b'{"architecture": "test_vit", "input_size": [3, 160, 160], "mean": null, "std": [1, 1, 1]}',
        b'{"architecture": "test_vit", "input_size": [3, 160, 160], "mean": [0, 0], "std": [1, 1, 1]}',
        b'{"architecture": "test_vit", "input_size": [3, 160, 160], "mean": [0, 0, 0], "std": [1, 1, 1],'
        b' "model_args": {"no_such": 1}}',
    ],
)
def test_a_repository_that_timm_cannot_build_says_what_else_to_give(hub: FakeHub, config: bytes) -> None:
    hub.put("org/model", "config.json", config)
    with pytest.raises(
        EncoderError, match=r"does not say how timm builds it .*; give timm:ARCH and --weights"
    ):
        encoder_spec("hf-hub:org/model")


def test_a_repository_of_another_size_than_its_architectures(hub: FakeHub) -> None:
    config = {
        "architecture": "test_vit",
        "model_args": {"num_classes": 5},
        "pretrained_cfg": {
            "input_size": [3, 96, 96], "fixed_input_size": True, "mean": [0, 0, 0], "std": [1, 1, 1],
        },
    }  # fmt: skip
    hub.put("org/model", "config.json", json.dumps(config).encode())
    state = timm.create_model("test_vit", img_size=96, num_classes=5).state_dict()
    hub.put("org/model", "model.safetensors", save({k: v.contiguous() for k, v in state.items()}))
    assert build_encoder(encoder_spec("hf-hub:org/model"), device="cpu").spec.input_px == 96


def test_a_repository_of_a_newer_timm(hub: FakeHub) -> None:
    config = {
        "architecture": "vit_from_the_future",
        "input_size": [3, 8, 8],
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
    }
    hub.put("org/model", "config.json", json.dumps(config).encode())
    with pytest.raises(EncoderError, match="which this timm does not have; update timm"):
        encoder_spec("hf-hub:org/model")


def test_the_environment_is_heeded_and_an_extraction_that_lacks_weights_leaves_no_store(
    hub: FakeHub, tmp_path: Path, write_section
) -> None:
    """HF_ENDPOINT, HF_HOME and HF_TOKEN by themselves, in a process of its own."""
    hub.answer = (403, GATED)
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_x",
    }
    command = [
        sys.executable, "-m", "mmap_st", "extract", f"her2st:{write_section('A1')}", str(tmp_path / "f.zarr"),
        "--encoder", "uni", "--magnifications", "20", "--device", "cpu",
    ]  # fmt: skip
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 2, shown.stderr
    assert (
        f"error: uni is gated and your account has no access yet: ask for it at {hub.address}/MahmoodLab/UNI"
        in shown.stderr
    )
    assert not (tmp_path / "f.zarr").exists()
