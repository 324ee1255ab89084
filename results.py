"""What the commands show of their results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmap_st import console

if TYPE_CHECKING:
    from mmap_st.extract.imports.run import ImportReport
    from mmap_st.extract.preview import PreviewReport
    from mmap_st.extract.run import ExtractReport


def show_extraction(report: ExtractReport, store: Path) -> None:
    """What an extraction did."""
    figures = report.telemetry
    rate = figures.windows / figures.seconds if figures.seconds else 0.0
    counts = [
        (len(report.done), "embedded"),
        (len(report.kept), "complete before"),
        (len(report.passed_over), "passed over (no image or no spots)"),
        (len(report.failed), "failed"),
    ]
    shown = ", ".join(f"{number} {what}" for number, what in counts if number)
    console.say(f"slides: {shown}; {figures.windows} windows in {figures.seconds:.0f} s ({rate:.0f}/s)")
    if report.invalid:
        console.say(f"{report.invalid} windows could not be read; their rows are NaN and marked invalid")
    if report.skipped:
        console.say(f"{report.skipped} windows show too little tissue; their rows are NaN and marked invalid")
    console.show_reasons("failed", report.failed)
    console.show_paths([store])


def show_import(report: ImportReport, store: Path) -> None:
    """What an import did: how many spots of each slide were matched, and how."""
    if report.done:
        rows = [
            (
                name,
                f"{done.match.matched} of {done.spots}",
                done.how,
                str(done.unusable) if done.unusable else "",
                str(done.match.contested) if done.match.contested else "",
                str(done.match.spare) if done.match.spare else "",
            )
            for name, done in report.done.items()
        ]
        columns = ("slide", "spots matched", "how", "not finite or zero", "contested", "rows left over")
        console.show_table("imported", columns, rows)
    counts = [
        (len(report.done), "imported"),
        (len(report.kept), "the same before"),
        (len(report.passed_over), "passed over (no file)"),
        (len(report.failed), "failed"),
    ]
    console.say("slides: " + ", ".join(f"{number} {what}" for number, what in counts if number))
    if report.invalid:
        console.say(f"{report.invalid} spots have no embedding; their rows are NaN and marked invalid")
    if report.unknown:
        console.warn(f"files named like no slide: {', '.join(report.unknown)}")
    console.show_reasons("failed", report.failed)
    if report.done or report.kept:
        console.show_paths([store])


def show_preview(report: PreviewReport) -> None:
    """Which pictures were drawn, and of which slides none could be."""
    if report.passed_over:
        console.say(f"{len(report.passed_over)} slides passed over (no image or no spots)")
    console.show_reasons("failed", report.failed)
    console.show_paths(list(report.written.values()))


def show_metrics(metrics: dict[str, Any], head: str) -> None:
    """A head's scores beside those of the baselines."""
    protocol = metrics["protocol"]
    console.say(
        f"{len(protocol['train'])} slides train, {len(protocol['val'])} validate,"
        f" {len(protocol['test'])} test; {protocol['genes']} genes ({protocol['panel']});"
        f" {protocol['validation']}"
    )
    if metrics["test"] is None:
        return
    named = {head: "test", "ridge (own strength)": "baseline_ridge", "training mean": "baseline_mean"}
    if metrics["test"] == metrics["baseline_ridge"]:
        del named["ridge (own strength)"]
    keys = ("pcc_slide", "pcc_slide_hvg50", "pcc_pooled", "mse", "mae")
    rows = [(name, *(_number(metrics[key][metric]) for metric in keys)) for name, key in named.items()]
    columns = ("head", "PCC (per slide)", "PCC (hvg50)", "PCC (pooled)", "MSE", "MAE")
    console.show_table("test slides", columns, rows)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
