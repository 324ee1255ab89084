"""Commands about encoders and the machine they run on: encoders, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmap_st.commands import console
from mmap_st.errors import EncoderError, RequestError


def encoders(
    name: Annotated[
        str, typer.Argument(metavar="[WORD]", help="Part of a name; a whole name shows all.")
    ] = "",
    ready: Annotated[bool, typer.Option("--ready", help="Only those that can be used here.")] = False,
    open_only: Annotated[bool, typer.Option("--open", help="Leave out those that the hub gates.")] = False,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Only those whose licence allows commercial use.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all that is known.")] = False,
) -> None:
    """List the available encoders."""
    from mmap_st.commands.tables import show_encoder, show_encoders
    from mmap_st.extract.encoders import listed_encoders, look_at

    found = list(listed_encoders(name, ready=ready, open_only=open_only, commercial=commercial))
    filtered = ready or open_only or commercial
    if not found and name and filtered and list(listed_encoders(name)):
        raise EncoderError(f"No encoder like {name!r} is left by these filters; leave some out.")
    one = next((encoder for encoder in found if encoder.spec.name == name.lower()), None)
    if not found or one is not None:
        found = [look_at(name)] if one is None else [one]
    if as_json:
        console.say_json({"encoders": [encoder.as_json() for encoder in found]})
    elif len(found) == 1 and name and not filtered:
        show_encoder(found[0])
    else:
        show_encoders(found)


def doctor(
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Examine this encoder: build, load, embed, compare.")
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Its weights.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Random weights.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the encoder's hub repository carries.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.")] = "fp32",
) -> None:
    """Say what is wrong with this machine, or with an encoder on it."""
    from mmap_st.extract.encoders import encoder_spec, examine_encoder
    from mmap_st.extract.engine import examine_machine
    from mmap_st.workflows import show_progress

    if encoder is None and (weights is not None or random_weights):
        raise RequestError("--weights and --random-weights are of an encoder; give --encoder NAME too.")
    with show_progress() as progress:
        if encoder is None:
            progress("looking at this machine")
            title, findings = "this machine", list(examine_machine(Path()))
        else:
            progress(f"building {encoder}")
            title = encoder
            findings = examine_encoder(
                encoder_spec(encoder),
                weights=weights,
                random_weights=random_weights,
                device=device,
                precision=precision,
                trust_remote_code=trust_remote_code,
            )
    console.show_findings(title, [(f.what, f.found, f.trouble) for f in findings])
    raise typer.Exit(1 if any(f.trouble for f in findings) else 0)
