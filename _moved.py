"""Deprecated import paths and names: they still work, with a warning that names the new import.

Nothing here imports another module of the package until an old name is used.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]
# Modules that plug-ins import from: warnings name them rather than the module that defines a name.
_PLUGIN_MODULES = ("heads", "encoders")

# New modules <- old modules. Some paths on the right exist today, as packages or with other contents.
_MODULES = """
commands.cohorts <- commands.downloads
commands.console <- console commands.stopping
commands.evaluation <- commands.comparison
commands.tables <- results
data.arrays <- data.array_grids data.neighbours data.pitch
data.counts <- data.genes data.harmonise
data.download.run <- data.download.listing data.download.transfer data.download.folder
data.download.web <- data.download.checks
data.panel <- data.spatial data.hest_panel
data.readers.finding <- data.readers.files data.readers.matching
data.readers.h5ad <- data.readers.anndata_table
data.readers.st <- data.readers.legacy_st
data.splits <- data.folds
data.spots <- data.labels data.tables
data.targets <- data.normalise
extract.encoders.build <- extract.encoders.fold
extract.encoders.catalogue <- extract.encoders.registry extract.encoders.listing
extract.encoders.checkpoints <- extract.encoders.layouts extract.encoders.state
extract.encoders.encoder <- extract.encoders.precision extract.encoders.scales extract.encoders.prepare
extract.encoders.networks.builders <- extract.encoders.ctranspath
extract.encoders.networks.builders <- extract.encoders.networks extract.encoders.adapters
extract.encoders.networks.pooling <- extract.encoders.network
extract.encoders.networks.transformers_models <- extract.encoders.hugging
extract.encoders.plugins <- extract.encoders.user
extract.encoders.self_test <- extract.encoders.known extract.encoders.examination
extract.encoders.spec <- extract.encoders.models extract.encoders.families.common
extract.encoders.weights <- extract.encoders.requirements extract.encoders.hub
extract.engine.device <- extract.memory
extract.engine.extraction <- extract.run
extract.engine.machine <- extract.machine
extract.engine.pipeline <- extract.engine.ahead extract.engine.keeper
extract.engine.planning.pending <- extract.engine.pending
extract.engine.planning.placement <- extract.placement extract.engine.placement
extract.engine.planning.plan extract.engine.planning.options <- extract.engine.plan
extract.engine.planning.plan extract.engine.planning.options <- extract.plan extract.engine.options
extract.engine.planning.sharing_out <- extract.engine.sharing_out
extract.engine.preview <- extract.preview
extract.engine.workers.processes <- extract.engine.processes
extract.engine.workers.ray_request <- extract.engine.ray_request
extract.engine.workers.ray_workers <- extract.engine.ray_workers
extract.engine.workers.worker <- extract.engine.worker
extract.imports.importing <- extract.imports.rows extract.imports.run
extract.imports.jobs <- extract.imports.request extract.imports.slides
extract.imports.matching <- extract.imports.match extract.imports.coordinates
extract.slides.formats <- extract.formats
extract.slides.formats.ome_zarr extract.slides.formats.pixels <- extract.formats.ome_zarr
extract.slides.formats.openslide_format <- extract.formats.openslide_format
extract.slides.formats.pixels <- extract.formats.pixels extract.formats.arrays
extract.slides.formats.plain <- extract.formats.plain
extract.slides.formats.tiff <- extract.formats.jpeg_tiles extract.formats.tiff
extract.slides.grid <- extract.grid extract.orientation
extract.slides.slide <- extract.resolution extract.slide
extract.slides.tissue <- extract.tissue
extract.store.magnification <- extract.embeddings extract.magnification
extract.store.reader <- extract.contents extract.store
extract.store.recipe extract.engine.planning.plan <- extract.recipe
extract.store.storage.bucket <- extract.store.bucket
extract.store.storage.folder <- extract.store.folder
extract.store.storage.places <- extract.store.places
extract.store.storage.zipped <- extract.store.zipped
extract.store.upkeep.merging <- extract.store.merging
extract.store.upkeep.packing <- extract.store.packing
extract.store.upkeep.sameness <- extract.store.sameness
extract.store.writing.failures <- extract.store.failures
extract.store.writing.journal <- extract.engine.journal extract.engine.rows extract.store.journal
extract.store.writing.lease <- extract.store.lease
extract.store.writing.lock <- extract.lock extract.store.lock
extract.store.writing.publishing <- extract.store.publishing
extract.store.writing.writer <- extract.store_write extract.magnification_write extract.store.writer
extract.windows <- extract.reading
extract.windows.geometry <- extract.windows
extract.windows.kernels <- extract.reading.kernels
extract.windows.read_plan <- extract.reading.hilbert extract.reading.plan
extract.windows.reader <- extract.reading.reader extract.resample
extract.windows.tile_cache <- extract.reading.cache
files <- extract.recipe_json
head.basis <- head.components
head.evaluation <- head.comparison
head.evaluation.ablations <- head.evaluation.run
head.evaluation.aggregate <- head.evaluation.summary
head.evaluation.comparison <- head.comparison.run
head.evaluation.comparison_rows <- head.comparison.request head.comparison.summary
head.evaluation.fold_jobs <- head.evaluation.jobs
head.evaluation.folder <- head.evaluation.request
head.inputs <- head.standardise head.slides
head.interface <- head.limits head.choice head.base
head.linear.closed_form <- head.closed_form
head.linear.hest_ridge <- head.hest_ridge
head.linear.mean <- head.mean
head.linear.ridge <- head.ridge
head.mmap.features <- head.features
head.mmap.fitting <- head.mmap_fit
head.mmap.fitting head.mmap.settings <- head.mmap
head.mmap.preparation <- head.prepare
head.mmap.trained_head head.mmap.features <- head.mmap_head head.slide_level
head.mmap.training <- head.training
head.neighbourhood <- head.context head.networks.graph
head.networks.attention <- head.network
head.networks.fitting <- head.networks.fit head.networks.method head.networks.head
head.networks.network <- head.networks.parts head.networks.tokens
head.networks.optimiser <- head.optimise
head.registry <- head.user
head.runs.fit <- head.fit
head.runs.metrics_file <- head.run_metrics
head.runs.prediction head.runs.prediction_files <- head.predictions head.predict
head.runs.request <- head.protocols head.request
head.runs.run_folder head.runs.saved_head head.runs.head_card <- head.run_folder
head.scoring.metrics <- head.metrics head.comparison.regions
head.scoring.statistics <- head.statistics
head.scoring.uncertainty <- head.uncertainty
plugins <- extract.user_code
progress <- extract.progress data.download.progress
prototypes.candidates <- prototypes.select
report.comparison <- report.comparison_table
report.maps <- report.prototype_map
workflows.demo <- demo
workflows.simulation <- data.simulate
workflows.simulation.cohort <- data.simulate.cohort
workflows.simulation.expression <- data.simulate.expression
workflows.simulation.tissue <- data.simulate.tissue data.simulate.paint
"""

# Names that were renamed, by old module; they are in the modules of the table, or in the one that is given.
_NAMES: dict[str, dict[str, str]] = {
    "data.array_grids": {
        "array_units": "array_positions",
        "hexagonal": "hexagonal_positions",
        "square": "square_positions",
    },
    "data.counts": {"trusted": "check_sparse"},
    "data.genes": {"in_any": "union_of_genes", "in_common": "shared_genes", "naming": "gene_naming"},
    "data.readers.anndata_table": {"fraction_of": "first_fraction"},
    "extract.engine.ahead": {"ReadAhead": "Prefetcher"},
    "extract.engine.keeper": {"Keeper": "ResultWriter"},
    "extract.placement": {"gets_spots": "has_spots"},
    "extract.store": {"has_no_file_locks": "files:has_no_file_locks", "holds_anything": "is_nonempty"},
    "data.normalise": {"targets": "targets_from_counts"},
    "data.survey": {"survey": "survey_cohort"},
    "extract.contents": {"contents": "list_contents"},
    "extract.encoders.listing": {"list_encoders": "listed_encoders"},
    "extract.encoders.state": {"sha256_of_file": "files:sha256_of_file"},
    "extract.encoders.build": {"RANDOM": "extract.store.recipe:RANDOM"},
    "head.comparison.run": {"Tell": "progress:ProgressCallback"},
    "head.comparison.summary": {
        "RowResult": "head.evaluation.results:RowResult",
        "SCORES": "head.evaluation.results:SCORES",
        "comparison": "compare_rows",
        "row_with_scores": "evaluated_row",
        "row_without_scores": "unevaluated_row",
    },
    "head.evaluation.cross_validation": {
        "EvaluateReport": "head.evaluation.ablations:EvaluateReport",
        "Tell": "progress:ProgressCallback",
        "collect": "collect_results",
        "prepare": "plan_fits",
        "read_cohort": "prepare_cohort",
    },
    "head.evaluation.folder": {
        "keep_request": "record_request",
        "write_json_whole": "head.scoring.results:write_json",
    },
    "head.evaluation.jobs": {
        "Job": "FoldJob",
        "Material": "SharedInputs",
        "Tell": "progress:ProgressCallback",
        "free_memory": "extract.engine.planning.options:free_memory",
        "jobs_side_by_side": "head.evaluation.fold_runs:parallel_jobs",
        "run_jobs": "head.evaluation.fold_runs:run_jobs",
    },
    "head.evaluation.request": {"describe": "request_contents"},
    "head.evaluation.summary": {"PER_SLIDE": "head.scoring.results:PER_SLIDE"},
    "head.fit": {"Tell": "progress:ProgressCallback"},
    "commands.extraction": {"info": "commands.sharing:info"},
    "head.metrics": {"summarise": "score_slides"},
    "head.predictions": {"UNS": "head.runs.prediction_files:UNS"},
    "head.runs.prediction": {
        name: f"head.runs.prediction_files:{name}"
        for name in ("INTERVAL", "MEASURED", "SPREAD", "UNS", "read_prediction")
    },
    "head.runs.saved_head": {
        name: f"head.runs.head_card:{name}"
        for name in ("FORMAT_VERSION", "NormalisationCard", "PanelCard", "SplitCard")
    },
    "head.run_folder": {
        "FORMAT_VERSION": "head.runs.head_card:FORMAT_VERSION",
        "begin_run_folder": "start_run_folder",
        "read_json": "head.scoring.results:read_json",
        "write_json": "head.scoring.results:write_json",
    },
    "head.run_metrics": {"Fitted": "FittedRun"},
    "head.statistics": {"difference": "paired_difference"},
    "head.base": {"held_out_by": "predict_held_out", "thinned": "subsample_step"},
    "head.basis": {"judged_genes": "validation_genes"},
    "head.context": {"Surroundings": "SpatialNeighbours"},
    "head.dataset": {
        "Measured": "CohortCounts",
        "measure": "read_cohort_counts",
        "why_not_embedded": "missing_embedding_reason",
    },
    "head.mmap_fit": {"Judged": "ValidationSpots"},
    "head.networks.fit": {"Tell": "ProgressCallback"},
    "head.networks.head": {"moved": "to_device"},
    "head.networks.network": {
        "KEPT": "REFERENCE_PREFIX",
        "PartNetwork": "BlockNetwork",
        "TrainingPart": "TrainingBlock",
    },
    "head.networks.parts": {"MOST_SPOTS": "MAX_SPOTS", "Part": "SpotBlock", "parts_of": "split_into_blocks"},
    "head.prepare": {"Prepared": "PreparedSlide"},
    "head.published.bank": {
        "MOST_SPOTS": "MAX_SPOTS",
        "kept_spots": "reference_rows",
        "owners": "owner_keys",
    },
    "head.slides": {"evenly": "subsample_rows"},
    "head.standardise": {"Standard": "EmbeddingScaler", "fit_standard": "fit_scaler"},
    "report.prototype_map": {"prototype_map": "prototypes_map"},
    "prototypes.candidates": {"MOST_SPOTS": "MAX_SPOTS"},
}

# Packages that give these names to the rest of this package, and gave them to plug-ins.
_GIVEN_TO_PLUGINS = {
    "extract.encoders": {"CustomModel", "EncoderSpec", "Pooling", "Preprocessing", "TimmModel"},
}


@cache
def _new_modules() -> dict[str, tuple[str, ...]]:
    """The modules that now hold the contents of each old one; itself, where only names changed."""
    found: dict[str, tuple[str, ...]] = {old: (old,) for old in (*_NAMES, *_GIVEN_TO_PLUGINS)}
    for line in _MODULES.strip().splitlines():
        new, _, old = line.partition(" <- ")
        found |= {module: tuple(new.split()) for module in old.split()}
    return found


def install() -> None:
    """Let Python find the old modules; called when the package is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder, Loader):
    """Finds old modules, and adds the old names to modules that exist under an old path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = fullname.partition(".")
        if package != _PACKAGE or old not in _new_modules():
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None:
            # As a package, since some of them were packages.
            return ModuleSpec(fullname, self, is_package=True)
        if found.loader is not None:
            _add_old_names(found.loader, old)
        return found

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.partition(".")[2]
        vars(module)["__getattr__"] = lambda name: _old_name(old, name)


def _add_old_names(loader: Loader, old: str) -> None:
    """Make a loader extend the `__getattr__` of the module that it loads by the module's old names."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        own: Callable[[str], Any] | None = vars(module).get("__getattr__")
        given = _GIVEN_TO_PLUGINS.get(old, ())

        def get(name: str) -> Any:
            if own is not None and name not in _NAMES.get(old, ()):
                try:
                    value = own(name)
                except AttributeError:
                    pass
                else:
                    if name in given:
                        vars(module).pop(name, None)  # lazy_loader caches it: the next import is to warn too
                        _warn_of_import(_caller(), old, name, name, value, old)
                    return value
            return _old_name(old, name)

        vars(module)["__getattr__"] = get

    vars(loader)["exec_module"] = exec_module


def _old_name(old: str, name: str) -> Any:
    """Return what an old module called `name`, with a warning.

    Raises
    ------
    AttributeError
        If it had no such name, or what had that name was removed.
    """
    new = _NAMES.get(old, {}).get(name, name)
    module, _, new = new.rpartition(":")
    modules = (module,) if module else _new_modules()[old]
    # A name that was moved further may be given by the package of the module.
    for place in () if name.startswith("__") else (*modules, *(m.rpartition(".")[0] for m in modules)):
        if place == old and new == name:
            continue
        try:
            value = getattr(importlib.import_module(f"{_PACKAGE}.{place}".rstrip(".")), new)
        except AttributeError:
            continue
        _warn_of_import(_caller(), old, name, new, value, place)
        return value
    raise AttributeError(
        f"module {_PACKAGE}.{old!s} has no attribute {name!r}; its contents are now in"
        f" {' and '.join(f'{_PACKAGE}.{place}' for place in _new_modules()[old])}"
    )


# The import statement that was last warned about: its other names need no further warning.
_warned: list[Any] = []


def _warn_of_import(frame: FrameType, old: str, name: str, new: str, value: Any, place: str) -> None:
    if frame.f_code.co_filename.startswith("<frozen importlib"):
        return  # it only checks that the name exists; the import itself follows
    caller = str(frame.f_globals.get("__name__", ""))
    if place == old and caller.partition(".")[0] == _PACKAGE:
        return  # the package's own use
    statement = [frame.f_code, frame.f_lineno, old]
    if new == name and _warned == statement and _warned[0] is frame.f_code:
        return
    _warned[:] = statement
    home = next((home for home in _PLUGIN_MODULES if _is_given(home, new, value)), place)
    what = f"{_PACKAGE}.{old}" if new == name else f"{name} of {_PACKAGE}.{old}"
    _warn(frame, f"{what} is deprecated: import {new} from {_PACKAGE}.{home}.")


def _is_given(home: str, name: str, value: Any) -> bool:
    module = importlib.import_module(f"{_PACKAGE}.{home}")
    return name in module.__all__ and getattr(module, name) is value


def _caller() -> FrameType:
    """The frame that uses an old name: the first that is not of this module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    assert frame is not None
    return frame


def _warn(frame: FrameType, text: str) -> None:
    """Warn about a line of code that uses an old name; by default, Python shows each line once."""
    warnings.warn_explicit(
        text,
        DeprecationWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        str(frame.f_globals.get("__name__", "")),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


@contextmanager
def shown_deprecations() -> Iterator[None]:
    """Show deprecations to whoever runs a plug-in: Python hides those in imported modules by default."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            outside = rf"(?!{_PACKAGE}(\.|$))"
            warnings.filterwarnings("default", rf".*\b{_PACKAGE}\.", DeprecationWarning, outside)
        yield


def old_attribute(old: str, new: str) -> Any:
    """Make a property that returns the attribute `new`, with a warning; for dataclasses of heads."""

    def get(owner: Any) -> Any:
        name = f"{_PACKAGE}.heads.{type(owner).__name__}"
        _warn(_caller(), f"{name}.{old} is deprecated: use {new}.")
        return getattr(owner, new)

    return property(get)


def adapt_old_methods(cls: type, base: type, names: Mapping[str, str]) -> None:
    """Let methods that a subclass defines by old names override those with the new names.

    Parameters
    ----------
    cls
        The subclass, when it is defined.
    base
        The class of this package that it is derived from. It and the classes in between get the old names
        too, so that ``super()`` finds them.
    names
        New names by old ones.
    """
    found = {old: new for old, new in names.items() if old in vars(cls) and new not in vars(cls)}
    if not found:
        return
    for old, new in found.items():
        setattr(cls, new, vars(cls)[old])
    for parent in cls.__mro__[1 : cls.__mro__.index(base) + 1]:
        for old, new in names.items():
            if new in vars(parent) and old not in vars(parent):
                setattr(parent, old, vars(parent)[new])
    told = ", ".join(f"{old} is now {new}" for old, new in found.items())
    text = f"{cls.__name__} defines methods of {_PACKAGE}.heads.{base.__name__} by deprecated names: {told}."
    _warn(_caller_of_class(), text)


def _caller_of_class() -> FrameType:
    """The frame of the class statement that is being executed."""
    frame = _caller()
    while frame.f_code.co_name == "__init_subclass__" and frame.f_back is not None:
        frame = frame.f_back
    return frame
