"""Signals in a long run."""

import os
import signal

import pytest

from mmap_st.commands.console import stop_on_signals
from mmap_st.errors import StoppedError


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_told_and_becomes_the_exit_status(number: signal.Signals, status: int) -> None:
    before = signal.getsignal(number)

    def work() -> None:
        with stop_on_signals() as stop:
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop()
            raise StoppedError("stopped in slide A1")

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == status
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def work() -> None:
        with stop_on_signals():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)


def test_work_that_ends_in_time_ends_as_it_would_have() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
