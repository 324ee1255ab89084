"""Signals in a long run."""

import os
import signal
import threading

import pytest

from mmap_st import cli
from mmap_st.errors import StoppedError
from mmap_st.workflows.embedding import stop_on_signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_told_and_becomes_the_exit_status(
    number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)

    def work() -> None:
        with stop_on_signals() as stop:
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop()
            raise StoppedError("stopped in slide A1")

    with pytest.raises(StoppedError) as ended:
        work()
    assert ended.value.signal_number == number
    assert signal.getsignal(number) is before

    monkeypatch.setattr(cli, "app", work)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == status
    assert "the same command resumes" in capsys.readouterr().err


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


def test_another_thread_cannot_be_asked_to_stop_and_works() -> None:
    found: list[bool] = []

    def work() -> None:
        with stop_on_signals() as stop:
            found.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
