"""What the commands show of their results."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from mmap_st.commands import console
from mmap_st.errors import agreeing, counted

if TYPE_CHECKING:
    from mmap_st.extract.encoders import EncoderSpec, ListedEncoder
    from mmap_st.extract.engine import ExtractionStatus, ExtractReport, PreviewReport
    from mmap_st.extract.imports import ImportReport
    from mmap_st.head.evaluation import AblationRow, ComparisonResult, EvaluationMetrics
    from mmap_st.head.runs import RunMetrics
    from mmap_st.head.scoring import SlideScores
    from mmap_st.head.sharing import ModelCard
    from mmap_st.report import Summary


#: Slides that nothing can be embedded of.
_SKIPPED = "skipped (no image or no spots)"


def show_extraction(report: ExtractReport, store: Path) -> None:
    """What an extraction did, and which slides failed."""
    show_embedded(report)
    console.show_reasons("failed", report.failed)
    console.show_paths([store])


def show_embedded(report: ExtractReport) -> None:
    """How many slides and windows an extraction embedded."""
    figures = report.telemetry
    rate = figures.windows / figures.seconds if figures.seconds else 0.0
    counts = [
        (len(report.done), "embedded"),
        (len(report.unchanged), "complete before"),
        (len(report.elsewhere), "embedded by other jobs"),
        (len(report.skipped_slides), _SKIPPED),
        (len(report.failed), "failed"),
    ]
    shown = ", ".join(f"{number} {what}" for number, what in counts if number)
    windows = counted(figures.windows, "window")
    console.say(f"slides: {shown or 'none'}; {windows} in {figures.seconds:.0f} s ({rate:.0f}/s)")
    if report.invalid:
        console.say(
            f"{counted(report.invalid, 'window')} could not be read; {_rows(report.invalid)} NaN and marked"
            " invalid"
        )
    if report.skipped_windows:
        console.say(
            f"{counted(report.skipped_windows, 'window shows', 'windows show')} too little tissue;"
            f" {_rows(report.skipped_windows)} NaN and marked invalid"
        )


def show_status(status: ExtractionStatus) -> None:
    """How far an extraction is: slides in flight, slides that failed, and what is left."""
    from mmap_st.extract.engine import FAILED, IN_FLIGHT, SKIPPED, STATES

    in_flight = status.of(IN_FLIGHT)
    rows = [
        (
            slide.slide,
            f"{slide.finished:,} of {'?' if slide.windows is None else f'{slide.windows:,}'}",
            f"{slide.holder.host}, process {slide.holder.pid}" if slide.holder else "",
            "" if slide.holder is None or slide.holder.since is None else _ago(slide.holder.since),
        )
        for slide in in_flight
    ]
    if rows:
        console.show_table("in flight", ("slide", "windows", "where", "since"), rows)
    console.show_reasons("failed", {slide.slide: slide.reason for slide in status.of(FAILED)})
    words = {SKIPPED: _SKIPPED}
    counts = [(len(status.of(state)), words.get(state, state)) for state in STATES]
    console.say("slides: " + (", ".join(f"{number} {state}" for number, state in counts if number) or "none"))
    if (left := status.windows_left) is None:
        return
    rate = f"; {status.rate:.0f}/s" if status.rate else ""
    time_left = f", {timedelta(seconds=round(status.seconds_left))} left" if status.seconds_left else ""
    if left:
        console.say(f"{counted(left, 'window')} left{rate}{time_left}")


def _ago(since: float) -> str:
    return f"{timedelta(seconds=max(0, round(time.time() - since)))} ago"


def show_slide_scores(scores: Mapping[str, SlideScores], coverage: Mapping[str, float]) -> None:
    """A table of slides that were predicted and measured."""
    if not scores:
        return
    from mmap_st.report import number

    header = ("slide", "spots", "PCC", "MSE", "MAE", "in 90% intervals")
    rows = [
        (
            slide,
            f"{of.n_spots:,}",
            *map(number, (of.pcc, of.mse, of.mae)),
            f"{coverage[slide]:.1%}" if slide in coverage else "",
        )
        for slide, of in scores.items()
    ]
    console.show_table("predicted and measured", header, rows)


#: Narrower terminals get the columns that one chooses by.
_WIDE = 130


def show_encoders(found: Sequence[ListedEncoder]) -> None:
    """A table of encoders."""
    wide = console.width() >= _WIDE
    rows = []
    for encoder in found:
        spec = encoder.spec
        gflops = (
            "" if spec.gflops is None else f"{spec.gflops:.0f}" if spec.gflops >= 10 else f"{spec.gflops}"
        )
        more = (
            "" if spec.parameters_m is None else f"{spec.parameters_m:.0f}",
            gflops,
            ", ".join(f"{mpp:g}" for mpp in spec.mpps),
        )
        rows.append(
            (
                spec.name,
                encoder.missing or "ready",
                _or_unknown(spec.gated),
                str(spec.width or ""),
                str(spec.input_px),
                *(more if wide else ()),
                _licence(spec, whole=wide),
            )
        )
    more_columns = ("M params", "GFLOPs", "um/px") if wide else ()
    columns = ("encoder", "here", "gated", "width", "px", *more_columns, "licence" if wide else "commercial")
    console.show_table("", columns, rows, left=(1, len(columns) - 1))
    ready = sum(encoder.ready for encoder in found)
    console.say(
        f"{ready} of {len(found)} ready here; there are timm:NAME, hf-hub:ORG/NAME, FILE.py:FUNCTION too."
        " `mmap encoders NAME` shows one whole."
    )


def _licence(spec: EncoderSpec, *, whole: bool) -> str:
    if not whole:
        return {True: "yes", False: "non-commercial", None: "?"}[spec.commercial]
    marked = spec.commercial is False and "non-commercial" not in spec.licence
    return spec.licence + (" (non-commercial)" if marked else "")


def show_encoder(encoder: ListedEncoder) -> None:
    """All that is known of one encoder, a line each."""
    known = encoder.as_json()
    labels = {
        "parameters_m": "parameters (millions)",
        "gflops": "GFLOPs a window",
        "recommended_mpp": "recommended um/px",
        "precision": "recommended precision",
        "to_get_it": "to get it",
        "commercial": "commercial use",
    }
    for key, value in known.items():
        # The statistics are in the preprocessing.
        if (
            value in ("", [])
            or key in ("mean", "std")
            or (value is None and key not in ("gated", "commercial"))
        ):
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        shown = _or_unknown(value) if value is None or isinstance(value, bool) else shown
        console.say(f"{labels.get(key, key.replace('_', ' '))}: {shown}")


def _or_unknown(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "no"


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
        (len(report.unchanged), "the same before"),
        (len(report.skipped_slides), "skipped (no file)"),
        (len(report.failed), "failed"),
    ]
    console.say("slides: " + ", ".join(f"{number} {what}" for number, what in counts if number))
    if report.invalid:
        console.say(
            f"{counted(report.invalid, 'spot has', 'spots have')} no embedding; {_rows(report.invalid)} NaN"
            " and marked invalid"
        )
    if report.unknown:
        console.warn(f"files named like no slide: {', '.join(report.unknown)}")
    console.show_reasons("failed", report.failed)
    if report.done or report.unchanged:
        console.show_paths([store])


def show_preview(report: PreviewReport) -> None:
    """Which pictures were drawn, and of which slides none could be."""
    if report.skipped_slides:
        console.say(f"{counted(len(report.skipped_slides), 'slide')} {_SKIPPED}")
    console.show_reasons("failed", report.failed)
    console.show_reasons("drawn, and cannot be embedded", report.unscaled)
    console.show_paths(list(report.written.values()))


def show_metrics(metrics: RunMetrics, head: str) -> None:
    """A head's scores, next to those of the baselines."""
    from mmap_st.report import summary_of_run

    _show_summary(summary_of_run(metrics, head))


def show_card(card: ModelCard) -> None:
    """What a trained head is and what it is valid for."""
    from mmap_st.head.sharing import card_sections, title_of

    console.show_heading(title_of(card))
    for section in card_sections(card):
        console.say("")
        console.show_heading(section.title)
        for line in section.lines:
            console.say(line)
        for table in section.tables:
            console.show_table(table.title, table.columns, table.rows)
        for command in section.commands:
            console.say(command)


def show_evaluation(metrics: EvaluationMetrics, head: str) -> None:
    """Scores of a cross-validation, with intervals over patients."""
    from mmap_st.report import summary_of_evaluation

    _show_summary(summary_of_evaluation(metrics, head))


def show_comparison(result: ComparisonResult) -> None:
    """Every row of a comparison."""
    from mmap_st.report import summary_of_comparison

    _show_summary(summary_of_comparison(result), left=(1,))


def _show_summary(summary: Summary, left: Sequence[int] = ()) -> None:
    console.say(summary.about)
    if summary.rows:
        console.show_table(summary.title, summary.columns, summary.rows, left=left)
    for note in summary.notes:
        console.say(note)


def show_ablations(rows: Sequence[AblationRow]) -> None:
    """Each ablation next to the head as it is."""
    from mmap_st.report import PER_SLIDE, number, with_interval

    shown = []
    for row in rows:
        apart = row.difference["pcc_slide"] if row.difference else None
        change = with_interval(apart.mean, apart.interval, "+") if apart else ""
        shown.append((row.variant, *(number(row.value(key)) for key in PER_SLIDE), change))
    columns = ("variant", "PCC (per slide)", "PCC (hvg50)", "MSE", "MAE", "PCC, to the head as it is")
    console.show_table("ablations", columns, shown)


def _rows(count: int) -> str:
    return agreeing(count, "its row is", "their rows are")
