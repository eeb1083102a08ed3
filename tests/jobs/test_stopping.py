"""Signals end a command in ten seconds, also where its libraries do not let it end."""

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

IN_A_LIBRARY_THAT_DOES_NOT_RETURN = """
import signal, time
from jobs.stopping import ends_on_signals

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background switches off
with ends_on_signals():
    while True:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except BaseException:
            pass
"""

IN_ORDER = """
import signal, time
from jobs.stopping import ends_on_signals

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background switches off
try:
    with ends_on_signals():
        print("ready", flush=True)
        time.sleep(60)
finally:
    print("ended in order", flush=True)
"""


def end(code: str, number: signal.Signals) -> tuple[int, str, float]:
    """Exit status, last output, and seconds after the signal."""
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        process.send_signal(number)
        try:
            shown, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, shown, time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_hangs_is_ended(number: signal.Signals) -> None:
    status, _, seconds = end(IN_A_LIBRARY_THAT_DOES_NOT_RETURN, number)
    assert status == 128 + number
    assert 7 < seconds < 20  # ten, and what a busy machine adds


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_can_ends_in_order(number: signal.Signals) -> None:
    status, shown, seconds = end(IN_ORDER, number)
    assert status in (128 + number, -number)
    assert shown == "ended in order\n"
    assert seconds < 7  # before it would be ended
