"""What an encoder needs besides weights: asked for before anything is fetched."""

from __future__ import annotations

from importlib.util import find_spec

from mmap_st.errors import MissingDependencyError, RequestError
from mmap_st.extract.encoders.models import PackageModel, RemoteCodeModel, TransformersModel
from mmap_st.extract.encoders.spec import EncoderSpec
from mmap_st.extract.encoders.weights import code_folder, read_configuration

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
