"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mmap_st.errors import RequestError

#: How the help of a command with many options groups them.
DATA, MODEL, EVALUATION, OUTPUT, MACHINE, JOBS = PANELS = (
    "Data",
    "Model",
    "Evaluation",
    "Output",
    "Machine",
    "Several jobs",
)

CohortArgument = Annotated[
    str, typer.Argument(metavar="COHORT", help="A cohort file (CSV, Parquet; or its URL) or reader:path.")
]
StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="A feature store.")]
EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder",
        help="An encoder (`mmap encoders`), timm:NAME, hf-hub:ORG/NAME, FILE.py:FUNCTION.",
        rich_help_panel=MODEL,
    ),
]
EncodersOption = Annotated[
    str,
    typer.Option(
        "--encoder",
        help="Of the store; or several, such as uni,virchow2, in one head.",
        rich_help_panel=MODEL,
    ),
]
MagnificationsOption = Annotated[
    str | None,
    typer.Option("--magnifications", help="Such as 20,10,5; 20x is 0.5 um/px.", rich_help_panel=MODEL),
]
MppOption = Annotated[
    str | None, typer.Option("--mpp", help="The same in um/px, such as 0.5,1,2.", rich_help_panel=MODEL)
]
ValuesOption = Annotated[
    str | None,
    typer.Option(
        "--values",
        help="counts (default), or lognorm if the tables are already log-normalised.",
        rich_help_panel=DATA,
    ),
]
PanelOption = Annotated[
    str | None,
    typer.Option(
        "--genes",
        help="all, hvg:N, mean:N, svg:N, hest:N, a file with one gene a line, names or ids of genes; or"
        " several, such as hvg:250,ERBB2; default: hvg:250, or the protocol's own.",
        rich_help_panel=DATA,
    ),
]
GeneSetOption = Annotated[
    str,
    typer.Option(
        "--gene-set",
        help="Panels are chosen from genes on every training slide, or on any: union.",
        rich_help_panel=DATA,
    ),
]
ProtocolOption = Annotated[
    str,
    typer.Option(
        "--protocol",
        help="How it is evaluated: default, legacy-mmap, hest-bench or triplex.",
        rich_help_panel=EVALUATION,
    ),
]
PrototypesOption = Annotated[
    str | None,
    typer.Option("--prototypes", help="kmeans, none, random or learned (head mmap).", rich_help_panel=MODEL),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A head's own setting; --set help lists them.",
        rich_help_panel=MODEL,
    ),
]
HeadOption = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="A head (`mmap heads`), or FILE.py:NAME; default: the protocol's own.",
        rich_help_panel=MODEL,
    ),
]
FoldsOption = Annotated[
    str,
    typer.Option(
        "--folds",
        help="patient: leave one out; patient:K; slide; or a CSV file of slide and fold.",
        rich_help_panel=EVALUATION,
    ),
]
SeedsOption = Annotated[
    int,
    typer.Option(
        "--seeds", min=1, help="Fits of each fold, with seeds from --seed on.", rich_help_panel=EVALUATION
    ),
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Fits side by side; default: as cores and memory allow.",
        rich_help_panel=MACHINE,
    ),
]
FitEngineOption = Annotated[
    str,
    typer.Option("--engine", help="local, or ray: tasks of Ray fit (extra ray).", rich_help_panel=MACHINE),
]
GpusPerJobOption = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-job",
        min=0,
        help="GPUs of each fit on Ray, such as 0.5 (default 1 if its head trains on any).",
        rich_help_panel=MACHINE,
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Of a Ray cluster, or auto (default: Ray is started here).",
        rich_help_panel=MACHINE,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of all randomness.", rich_help_panel=MODEL)]


class Command(TyperCommand):
    """A command whose help has its groups of options in one order, whatever that of its arguments."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Options by group; within one, as they are declared."""
        order = {panel: place for place, panel in enumerate(PANELS)}

        def place(parameter: Any) -> int:
            return order.get(getattr(parameter, "rich_help_panel", None) or "", -1)

        return sorted(super().get_params(ctx), key=place)


def parse_settings(pairs: list[str] | None) -> dict[str, str]:
    """Settings of a head by name, of ``--set KEY=VALUE``.

    Raises
    ------
    RequestError
        If one is not such a pair.
    """
    settings = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise RequestError(f"--set {pair}: give KEY=VALUE, such as alpha=1e5.")
        settings[key.strip()] = value
    return settings


def parse_settings_of_heads(pairs: list[str] | None) -> dict[str, dict[str, str]]:
    """Settings of several heads, of ``--set HEAD.KEY=VALUE``.

    Raises
    ------
    RequestError
        If one is not such a pair.
    """
    settings: dict[str, dict[str, str]] = {}
    for pair in pairs or ():
        head, dot, setting = pair.partition(".")
        key, equals, value = setting.partition("=")
        if not dot or not equals:
            raise RequestError(f"--set {pair}: give HEAD.KEY=VALUE, such as ridge.alpha=1e5.")
        settings.setdefault(head, {})[key.strip()] = value
    return settings


def split_words(text: str | None) -> list[str] | None:
    """Names separated by commas; None where the option is not given.

    Raises
    ------
    RequestError
        If it is given and names nothing.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise RequestError(
            f"{text!r} names nothing; give names separated by commas, or leave the option out."
        )
    return words


def parse_images(texts: list[str] | None) -> Path | dict[str, Path] | None:
    """``--image``: one image, a folder of images, or ``SLIDE=PATH`` for each of some slides.

    Raises
    ------
    RequestError
        If several are given that are not all ``SLIDE=PATH``, or a slide has two.
    """
    if not texts:
        return None
    if len(texts) == 1 and ("=" not in texts[0] or Path(texts[0]).exists()):
        return Path(texts[0])
    images: dict[str, Path] = {}
    for text in texts:
        slide, path = _slide_and_path(text)
        if not slide or not path:
            raise RequestError(_incomplete("--image", text, "SLIDE=PATH"))
        if slide in images:
            raise RequestError(f"--image names two images of {slide}, {images[slide]} and {path}; give one.")
        images[slide] = Path(path)
    return images


def parse_patients(texts: list[str] | None) -> str | dict[str, str] | None:
    """``--patient``: one patient, or ``SLIDE=PATIENT`` for each of some slides.

    Raises
    ------
    RequestError
        If several are given that are not all ``SLIDE=PATIENT``, or a slide has two.
    """
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    patients: dict[str, str] = {}
    for text in texts:
        slide, _, name = (part.strip() for part in text.rpartition("="))  # names of slides may have one
        if not slide or not name:
            raise RequestError(_incomplete("--patient", text, "SLIDE=PATIENT"))
        if patients.setdefault(slide, name) != name:
            raise RequestError(
                f"--patient names two patients of {slide}, {patients[slide]} and {name}; give one."
            )
    return patients


def _incomplete(flag: str, text: str, form: str) -> str:
    if "=" not in text:
        return f"{flag} {text}: where there are several, give {form} for each."
    slide, _, other = form.lower().partition("=")
    side, what = ("before", slide) if text.strip().startswith("=") else ("after", other)
    return f"{flag} {text}: nothing stands {side} the =; give {form}, with a {what} there."


def _slide_and_path(text: str) -> tuple[str, str]:
    """Split at the = after which a path is that exists, or else at the first: names may have one too."""
    places = [i for i, letter in enumerate(text) if letter == "="]
    place = next((i for i in places if Path(text[i + 1 :]).exists() and text[i + 1 :]), None)
    first = places[0] if places else 0
    at = first if place is None else place
    return text[:at].strip(), text[at + 1 :].strip() if places else ""
