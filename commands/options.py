"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmap_st.errors import RequestError

CohortArgument = Annotated[
    str, typer.Argument(metavar="COHORT", help="A cohort file (CSV, Parquet) or reader:path.")
]
StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="A feature store.")]
EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder", help="An encoder (`mmap encoders`), timm:NAME, hf-hub:ORG/NAME, FILE.py:FUNCTION."
    ),
]
MagnificationsOption = Annotated[
    str | None, typer.Option("--magnifications", help="Such as 20,10,5; 20x is 0.5 um/px.")
]
MppOption = Annotated[str | None, typer.Option("--mpp", help="The same in um/px, such as 0.5,1,2.")]
ValuesOption = Annotated[
    str | None, typer.Option("--values", help="What count tables hold: counts, or lognorm on purpose.")
]
GenesOption = Annotated[
    str | None,
    typer.Option(
        "--genes",
        help="all, hvg:N, mean:N, svg:N, hest:N, or a file with one gene a line; default: hvg:250, or the"
        " protocol's own.",
    ),
]
GeneSetOption = Annotated[
    str,
    typer.Option(
        "--gene-set", help="Panels are chosen from genes on every training slide, or on any: union."
    ),
]
ProtocolOption = Annotated[
    str, typer.Option("--protocol", help="How it is evaluated: default, legacy-mmap, hest-bench or triplex.")
]
PrototypesOption = Annotated[
    str | None, typer.Option("--prototypes", help="kmeans, none, random or learned (head mmap).")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A head's own setting.")
]
HeadOption = Annotated[
    str | None,
    typer.Option("--head", help="A head of docs/heads.md, or FILE.py:NAME; default: the protocol's own."),
]
FoldsOption = Annotated[
    str,
    typer.Option(
        "--folds", help="patient: leave one out; patient:K; slide; or a CSV file of slide and fold."
    ),
]
SeedsOption = Annotated[
    int, typer.Option("--seeds", min=1, help="Fits of each fold, with seeds from --seed on.")
]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Fits side by side; default: as cores and memory allow."),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of all randomness.")]


def stored_encoder(name: str) -> str:
    """What a store calls an encoder: one of a file has the name that its spec says."""
    if ".py:" not in name:
        return name
    from mmap_st.extract.encoders import encoder_spec

    return encoder_spec(name).name


def parse_values(text: str | None) -> str | None:
    """Check what ``--values`` says; None for counts, the default.

    Raises
    ------
    RequestError
        If it is no such word.
    """
    from mmap_st.data import VALUES

    if text is not None and text not in VALUES:
        raise RequestError(f"--values {text}: give {' or '.join(VALUES)}.")
    return None if text == "counts" else text
