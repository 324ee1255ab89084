"""What tests of reading and of whole extractions share."""

import sys
from collections.abc import Iterator

import pytest
import torch

from mmap_st.extract.windows.device_resizing import DeviceResizer


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
