"""One example of each command, with which its help ends."""

from __future__ import annotations

_STORE = "features.zarr"
_ON = f"cohort.csv {_STORE}"

#: By the words that name the command; nothing names the program itself.
EXAMPLES = {
    "": "mmap demo --out demo",
    "download": "mmap download her2st --out her2st --sections B4,C2",
    "cohort": "mmap cohort her2st:her2st --out cohort.csv",
    "cohort write": "mmap cohort visium:outs --out cohort.csv --image slide.svs",
    "cohort check": "mmap cohort check cohort.csv --pictures spots",
    "extract": f"mmap extract {_ON} --encoder uni --magnifications 20,10,5",
    "import": f"mmap import {_STORE} --slide C2 --encoder mine --mpp 0.5 --features C2.npy",
    "prototypes": f"mmap prototypes {_STORE} --encoder uni --clusters auto",
    "fit-head": f"mmap fit-head {_ON} --encoder uni --genes hvg:250,ERBB2,FASN --test patient=B --out run",
    "evaluate": f"mmap evaluate {_ON} --encoder uni --head ridge --folds patient:5 --out evaluation",
    "compare": f"mmap compare {_ON} --encoders uni,virchow2 --heads mmap,ridge --out comparison",
    "predict": "mmap predict run slide.svs --out predictions",
    "report": "mmap report run --genes ERBB2,FASN --out figures",
    "export": "mmap export predictions --format geojson,csv --genes ERBB2,FASN --out tables",
    "view": "mmap view run --genes ERBB2 --slide B4",
    "info": f"mmap info {_STORE} --verify",
    "pack": f"mmap pack {_STORE} {_STORE}.zip",
    "merge": f"mmap merge lab.zarr clinic.zarr.zip --out {_STORE}",
    "gc": f"mmap gc {_STORE} --dry-run",
    "heads": "mmap heads ridge",
    "encoders": "mmap encoders --ready",
    "doctor": "mmap doctor --encoder efficientnet-lite0",
    "demo": "mmap demo --out demo --patients 6",
}


def example(command: str) -> str:
    """The last line of a command's help."""
    return f"Example: {EXAMPLES[command]}"
