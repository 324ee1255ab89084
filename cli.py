"""The command line: the commands of `mmap_st.commands`, and what an error ends with."""

from __future__ import annotations

import errno
import io
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

import mmap_st
from mmap_st.commands import (
    Command,
    cohorts,
    console,
    encoders,
    evaluation,
    example,
    extraction,
    head_list,
    heads,
    reports,
    sharing,
    upkeep,
    viewing,
)
from mmap_st.errors import MmapError, MmapWarning, RequestError, StoppedError
from mmap_st.files import cannot_be_written, number_of

app = typer.Typer(
    name="mmap",
    help="Spatial gene expression from H&E slides.",
    epilog=example(""),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(name: str, function: Callable[..., None], cls: type[Command] = Command) -> None:
    app.command(name, cls=cls, epilog=example(name))(function)


_add("download", cohorts.download)
app.add_typer(cohorts.app, name="cohort")
_add("extract", extraction.extract)
_add("import", extraction.import_)
_add("prototypes", extraction.prototypes)
_add("fit-head", heads.fit_head, head_list.FitsHeads)
_add("evaluate", evaluation.evaluate, head_list.FitsHeads)
_add("compare", evaluation.compare, head_list.FitsHeads)
_add("predict", heads.predict)
_add("report", reports.report)
_add("export", reports.export)
_add("view", viewing.view)
_add("info", sharing.info)
_add("pack", sharing.pack)
_add("merge", upkeep.merge)
_add("gc", upkeep.gc)
_add("heads", head_list.heads)
_add("encoders", encoders.encoders)
_add("doctor", encoders.doctor)
_add("demo", heads.demo)


_STOPPED = "stopped; what was finished is saved, and the same command resumes from there."
#: What no command can foresee: the disk filled up, or may not be written to any more.
_DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main() -> None:
    """Run a command; turn what went wrong into one sentence and an exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except StoppedError as error:
        console.fail(_STOPPED)
        sys.exit(128 + error.signal_number)
    except SystemExit as end:
        # Typer turns Ctrl-C in a command that has no batches to stop between into this status.
        if end.code == 128 + signal.SIGINT:
            console.fail(_STOPPED)
        raise
    except RequestError as error:
        console.fail(str(error))
        sys.exit(2)
    except MmapError as error:
        console.fail(str(error))
        sys.exit(1)
    except OSError as error:
        if number_of(error) not in _DISK_FAILS:
            raise
        console.fail(f"{error.filename or 'a file'} {cannot_be_written(error, 'use another place')}")
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mmap-st {mmap_st.__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print log messages.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Spatial gene expression from H&E slides."""
    console.set_up_logging(verbose=verbose)
    # Commands show what the functions of the library warn about.
    warnings.simplefilter("ignore", MmapWarning)


if __name__ == "__main__":
    main()
