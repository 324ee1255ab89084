"""What tests of reading and of whole extractions share."""

import sys
from collections.abc import Iterator

import pytest
import torch

from mmap_st.extract.engine.workers import processes
from mmap_st.extract.windows.device_resizing import DeviceResizer


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread computes in each process: on a CPU the last bits depend on how many do."""
    monkeypatch.setattr(processes, "usable_cores", lambda: 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def interpreted() -> Iterator[DeviceResizer]:
    """Windows made by the kernels of a GPU, which Triton interprets here, one after the other."""
    pytest.importorskip("triton", reason="torch comes without Triton here")
    name = "mmap_st.extract.windows.triton_kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.delitem(sys.modules, name, raising=False)
        yield DeviceResizer(torch.device("cpu"))
        sys.modules.pop(name, None)
