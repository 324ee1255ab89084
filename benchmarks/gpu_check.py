"""The checks of a GPU, part by part: `benchmarks/gpu.sh` runs them; each writes its own JSON.

    benchmarks/gpu.sh all --out out/gpu

`tests`: the tests of the device's queue and those of `tests/gpu`. `extract`: windows a second of extraction
and of its steps alone. `head`: fits on the card against fits on the CPU. `--device cpu` is a rehearsal: the
same code with networks and counts so small that it ends in minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from gpu_record import Record, table

ROOT = Path(__file__).resolve().parents[1]
#: Seconds after which a part begins no further measurement.
SECONDS = {"tests": 60.0, "head": 45.0, "extract": 150.0}
TESTS = ("tests/gpu", "tests/extract/engine/test_device.py")


class Reporter:
    """Tells a record of each test when it is over."""

    def __init__(self, record: Record, device: str) -> None:
        self._record, self._device = record, device

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Called by pytest: leave out tests of another device, which are run wherever there is no card."""
        items[:] = [item for item in items if self._device in _device_of(item)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for each step of each test."""
        name = report.nodeid.split("/")[-1]
        if report.failed:
            self._record.fail(name, report.longreprtext)
        elif report.skipped:
            self._record.keep(
                name, {"skipped": report.longrepr[2] if isinstance(report.longrepr, tuple) else ""}
            )
        elif report.when == "call":
            self._record.keep(name, {"seconds": report.duration, **dict(report.user_properties)})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest for each file that it has read."""
        if report.failed:
            self._record.fail(report.nodeid, report.longreprtext)


def _device_of(item: pytest.Item) -> str:
    """The device that a test is of; all of them, where it names none."""
    callspec = getattr(item, "callspec", None)
    named = callspec.params.get("encoder") if callspec else None
    return named if isinstance(named, str) else "cpu cuda"


def run_tests(record: Record, device: str, scratch: Path) -> None:
    """Run the tests on a device; each is kept when it is over."""
    os.environ["MMAP_TEST_DEVICE"] = device
    os.chdir(ROOT)
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={scratch / 'pytest'}"]
    status = pytest.main([*options, *TESTS], plugins=[Reporter(record, device)])
    if status and not record.failed:
        record.fail("pytest", f"it ended with status {int(status)}")


def main() -> int:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=(*SECONDS, "slide", "table"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument(
        "--scratch", type=Path, help="folder for what is not kept; --out where it is not given"
    )
    parser.add_argument("--seconds", type=float, help="after so many no measurement is begun any more")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    scratch: Path = (arguments.scratch or out).resolve()
    if arguments.part == "table":
        text = table(out)
        (out / "table.md").write_text(text, "utf-8")
        print(text)
        return 0
    if arguments.part == "slide":
        from gpu_extract import prepare_slide

        prepare_slide(scratch)
        return 0
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no NVIDIA card answers here; --device cpu is a rehearsal.")
    seconds = arguments.seconds or SECONDS[arguments.part] * (4 if arguments.device == "cpu" else 1)
    record = Record(out, arguments.part, arguments.device, seconds)
    if arguments.part == "tests":
        run_tests(record, arguments.device, scratch)
    elif arguments.part == "head":
        from gpu_head import run_head

        run_head(record, arguments.device)
    else:
        from gpu_extract import run_extract

        run_extract(record, arguments.device, scratch)
    record.save()
    return int(record.failed)


if __name__ == "__main__":
    raise SystemExit(main())
