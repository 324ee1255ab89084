import subprocess
import sys

import pytest

_FAULTS_OF_TWENTY_BLOCKS = """
import resource, sys
import numpy as np
from mmap_st.extract.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for turn in range(21):
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(3_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc alone")
def test_freed_memory_is_asked_for_once() -> None:
    faults = {
        kept: int(
            subprocess.run(
                [sys.executable, "-c", _FAULTS_OF_TWENTY_BLOCKS, kept],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for kept in ("given back", "kept")
    }
    # 24 MB are 5,859 pages, twenty times.
    assert faults["kept"] < faults["given back"] / 10
