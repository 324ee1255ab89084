"""What the commands show of their results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from mmap_st.commands import console
from mmap_st.errors import agreeing, counted

if TYPE_CHECKING:
    from mmap_st.extract.encoders import EncoderSpec, ListedEncoder
    from mmap_st.extract.engine import ExtractReport, PreviewReport
    from mmap_st.extract.imports import ImportReport
    from mmap_st.head.evaluation import AblationRow, ComparisonResult, EvaluationMetrics
    from mmap_st.head.runs import RunMetrics, TrustedGenes
    from mmap_st.head.scoring import Interval, NoiseCeiling, PredictionIntervals, Scores, SlideScores


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
        (len(report.skipped_slides), "skipped (no image or no spots)"),
        (len(report.failed), "failed"),
    ]
    shown = ", ".join(f"{number} {what}" for number, what in counts if number)
    console.say(
        f"slides: {shown}; {counted(figures.windows, 'window')} in {figures.seconds:.0f} s ({rate:.0f}/s)"
    )
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


def show_slide_scores(scores: Mapping[str, SlideScores], coverage: Mapping[str, float]) -> None:
    """A table of slides that were predicted and measured."""
    if not scores:
        return
    header = ("slide", "spots", "PCC", "MSE", "MAE", "in 90% intervals")
    rows = [
        (
            slide,
            f"{of.n_spots:,}",
            f"{of.pcc:.4f}",
            f"{of.mse:.4f}",
            f"{of.mae:.4f}",
            f"{coverage[slide]:.1%}" if slide in coverage else "",
        )
        for slide, of in scores.items()
    ]
    console.show_table("predicted beside measured", header, rows)


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
        console.say(f"{counted(len(report.skipped_slides), 'slide')} skipped (no image or no spots)")
    console.show_reasons("failed", report.failed)
    console.show_reasons("drawn, and cannot be embedded", report.unscaled)
    console.show_paths(list(report.written.values()))


#: What tables call the predictors of results.
_PREDICTORS = {"ridge": "ridge (own strength)", "mean": "training mean"}
#: Metrics that each slide has.
_PER_SLIDE = ("pcc_slide", "pcc_slide_hvg50", "mse", "mae")


def show_metrics(metrics: RunMetrics, head: str) -> None:
    """A head's scores, next to those of the baselines."""
    protocol = metrics.protocol
    console.say(
        f"{counted(len(protocol.train), 'slide')} train, {len(protocol.val)} validate, {len(protocol.test)}"
        f" test; {counted(protocol.genes, 'gene')} ({protocol.panel}); {protocol.validation}"
    )
    if metrics.test is None:
        return
    keys = ("pcc_slide", "pcc_slide_hvg50", "pcc_pooled", "mse", "mae")
    shown = {
        name: scores
        for name, scores in metrics.predictors.items()
        if name != "ridge" or scores != metrics.test
    }
    rows = [
        [_PREDICTORS.get(name, head), *(_number(scores.value(key)) for key in keys)]
        for name, scores in shown.items()
    ]
    columns = ["head", "PCC (per slide)", "PCC (hvg50)", "PCC (pooled)", "MSE", "MAE"]
    _add_ceiling(columns, rows, shown.values(), metrics.noise_ceiling)
    console.show_table("test slides", columns, rows)
    _show_coverage(metrics.prediction_intervals)
    _show_trust(metrics.gene_trust, protocol.genes)


def _show_trust(found: TrustedGenes | None, genes: int) -> None:
    """How many genes are to be trusted."""
    if found is None:
        return
    of = f"of {counted(genes, 'gene')}"
    if found.of_patients:
        patients = counted(found.patients, "patient")
        console.say(
            f"{found.trusted} {of} to be trusted: better than chance on {patients} whom fits did not see"
        )
    else:
        console.say(
            f"{found.above_chance} {of} predicted better than by chance where fits did not see them"
            f" ({found.judged_on}); too few patients to tell which to trust on new ones"
        )


def _add_ceiling(
    columns: list[str], rows: list[list[str]], shown: Iterable[Scores], ceiling: NoiseCeiling | None
) -> None:
    """Add beside the PCC its share of the noise ceiling, and the ceiling as the last row."""
    if ceiling is None:
        return
    columns.insert(2, "of ceiling")
    shares = (None if scores.pcc_of_ceiling is None else f"{scores.pcc_of_ceiling:.0%}" for scores in shown)
    for row, share in zip_longest(rows, shares):
        row.insert(2, share or "")
    known = ["noise ceiling", _number(ceiling.pcc_slide), "", _number(ceiling.pcc_slide_hvg50)]
    rows.append(known + [""] * (len(columns) - len(known)))


def _show_coverage(found: PredictionIntervals | None) -> None:
    """How often prediction intervals held the truth."""
    if found is not None:
        worst = found.worst_slide if len(found.slides) > 1 else None
        least = "" if worst is None else f", and {found.slides[worst]:.1%} on the slide {worst}, the least"
        console.say(
            f"{found.level:.0%} prediction intervals contain {found.coverage:.1%} of the test targets{least}"
            f" ({found.condition or found.calibrated_on})"
        )


def show_evaluation(metrics: EvaluationMetrics, head: str) -> None:
    """Scores of a cross-validation, with intervals over patients."""
    protocol = metrics.protocol
    least, most = sorted((protocol.genes[0], protocol.genes[-1]))
    genes = counted(most, "gene") if least == most else f"{least} to {most} genes"
    console.say(
        f"{counted(len(metrics.test.slides), 'slide')} of {counted(protocol.patients, 'patient')} in"
        f" {counted(len(protocol.fold_slides), 'fold')} ({protocol.folds}),"
        f" {counted(len(protocol.seeds), 'seed')}; {genes} ({protocol.panel});"
        f" {', '.join(protocol.validation)}"
    )
    rows = [
        [_PREDICTORS.get(name, head), *(_with_interval(of.value(k), of.interval(k)) for k in _PER_SLIDE)]
        for name, of in metrics.predictors.items()
    ]
    for name, gain in (("over ridge", metrics.gain_over_ridge), ("over the mean", metrics.gain_over_mean)):
        if gain is not None:
            rows.append([name, *(_with_interval(gain[k].mean, gain[k].interval, "+") for k in _PER_SLIDE)])
    columns = ["head", "PCC (per slide)", "PCC (hvg50)", "MSE", "MAE"]
    _add_ceiling(columns, rows, metrics.predictors.values(), metrics.noise_ceiling)
    enough = metrics.test.interval("pcc_slide") is not None
    what = "with 95% intervals over patients" if enough else "too few patients for intervals"
    console.show_table(f"held-out slides, {what}", columns, rows)
    _show_coverage(metrics.prediction_intervals)


def show_comparison(result: ComparisonResult) -> None:
    """Every row of a comparison."""
    from mmap_st.report import about, notes, table_of

    console.say(about(result))
    columns, lines = table_of(result.rows)
    console.show_table("held-out slides", columns, lines, left=(1,))
    for note in notes(result):
        console.say(note)


def show_ablations(rows: Sequence[AblationRow]) -> None:
    """Each ablation next to the head as it is."""
    shown = []
    for row in rows:
        apart = row.difference["pcc_slide"] if row.difference else None
        change = _with_interval(apart.mean, apart.interval, "+") if apart else ""
        shown.append((row.variant, *(_number(row.value(key)) for key in _PER_SLIDE), change))
    columns = ("variant", "PCC (per slide)", "PCC (hvg50)", "MSE", "MAE", "PCC, to the head as it is")
    console.show_table("ablations", columns, shown)


def _with_interval(value: float, interval: Interval | None, sign: str = "") -> str:
    """A number, and its interval where there is one."""
    if value != value:
        return "undefined"
    shown = f"{value:{sign}.4f}"
    return shown if interval is None else f"{shown} ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"


def _rows(count: int) -> str:
    return agreeing(count, "its row is", "their rows are")


def _number(value: float) -> str:
    return "undefined" if value != value else f"{value:.4f}"
