"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CohortArgument = Annotated[
    str, typer.Argument(metavar="COHORT", help="A cohort file (CSV, Parquet) or reader:path.")
]
StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="A feature store.")]
EncoderOption = Annotated[str, typer.Option("--encoder", help="An encoder, or timm:NAME.")]
MagnificationsOption = Annotated[
    str | None, typer.Option("--magnifications", help="Such as 20,10,5; 20x is 0.5 um/px.")
]
MppOption = Annotated[str | None, typer.Option("--mpp", help="The same in um/px, such as 0.5,1,2.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of all randomness.")]
