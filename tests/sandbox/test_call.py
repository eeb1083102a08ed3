"""Calls that hang, crash or lose their parent: no fault outlives the process that it may kill."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Isolate
from tests.media.videos import (
    cached,
    die,
    fail,
    leave,
    many_bytes,
    modules,
    outcome,
    process_id,
    shout,
    sleep,
    spin_in_native_code,
)
from videolavit.media import MediaError
from videolavit.sandbox.call import IsolatedFunction
from videolavit.sandbox.errors import ProcessDied, TimeLimitExceeded


class Holder:
    def method(self) -> None:
        pass


@pytest.mark.parametrize(("target", "arguments"), [(sleep, (600,)), (spin_in_native_code, ())])
def test_a_hang_ends_at_its_limit(isolate: Isolate, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    function = isolate(target)
    warm = isolate(process_id)
    warm(time_limit=30)
    started = time.monotonic()
    with pytest.raises(TimeLimitExceeded, match=r"not finished after 1\.5 s"):
        function(*arguments, time_limit=1.5)
    assert 1.4 < time.monotonic() - started < 2.5
    assert function.pid is None


def test_the_call_after_a_hang_works_in_a_new_process(isolate: Isolate) -> None:
    function = isolate(sleep)
    assert function(0, time_limit=30) == "awake"
    first = function.pid
    assert first is not None
    with pytest.raises(TimeLimitExceeded):
        function(600, time_limit=0.3)
    assert not alive(first)
    assert function(0, time_limit=30) == "awake"
    assert function.pid not in (None, first)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGFPE"])
def test_a_crash_names_its_signal(isolate: Isolate, name: str) -> None:
    function = isolate(die)
    with pytest.raises(ProcessDied, match=name):
        function(getattr(signal, name), time_limit=30)
    with pytest.raises(ProcessDied, match=name):
        function(getattr(signal, name), time_limit=30)


def test_an_exit_names_its_status(isolate: Isolate) -> None:
    with pytest.raises(ProcessDied, match="status 7"):
        isolate(leave)(7, time_limit=30)


def test_a_process_that_was_killed_between_two_calls_is_replaced(isolate: Isolate) -> None:
    function = isolate(process_id)
    first = function(time_limit=30)
    os.kill(first, signal.SIGKILL)
    assert _gone(first)
    time.sleep(0.2)  # the last thread of a process may outlive its first one
    assert function(time_limit=30) != first


def test_exceptions_come_back_as_themselves(isolate: Isolate) -> None:
    function = isolate(fail)
    with pytest.raises(MediaError, match=r"^no such luck$") as caught:
        function("no such luck", time_limit=30)
    assert type(caught.value) is MediaError
    first = function.pid
    with pytest.raises(MediaError):
        function("again", time_limit=30)
    assert function.pid == first, "an exception is no reason for a new process"


def test_printing_does_not_disturb_the_answers(isolate: Isolate, capfd: pytest.CaptureFixture[str]) -> None:
    function = isolate(shout)
    for _ in range(3):
        assert function("noise", time_limit=30) == "NOISE"
    printed, deadline = "", time.monotonic() + 10
    while printed.count("noise") < 6 and time.monotonic() < deadline:
        captured = capfd.readouterr()
        printed += captured.err
        assert "noise" not in captured.out
        time.sleep(0.02)
    assert printed.count("noise") == 6


def test_large_answers_and_arguments(isolate: Isolate) -> None:
    answer = isolate(many_bytes)(50 << 20, time_limit=60)
    assert hashlib.sha256(answer).digest() == hashlib.sha256(bytes(range(256)) * (50 << 12)).digest()
    assert isolate(outcome)(bytes(50 << 20), time_limit=60) in ("UnknownFormat", "ForbiddenFormat")


def test_the_child_imports_the_module_of_the_function_and_no_more(isolate: Isolate) -> None:
    """A function that its module wraps is found by its name too."""
    loaded = isolate(modules)("videolavit.", "torch", "ray", "pytest", time_limit=30)
    assert "videolavit.media" in loaded
    assert not {name for name in loaded if name.split(".")[0] in ("torch", "ray", "pytest")}
    assert isolate(cached)(3, time_limit=30) == 9


@pytest.mark.parametrize("function", [lambda: 1, "text".upper, partial(sleep, 0), Holder.method, Holder().method])
def test_only_functions_that_another_process_can_import_are_taken(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="another process cannot import it"):
        IsolatedFunction(function)


def test_neither_closures_nor_functions_of_the_main_program_are_taken() -> None:
    def closure() -> None:
        pass

    with pytest.raises(TypeError, match="is no module-level function"):
        IsolatedFunction(closure)
    script = """
from videolavit.sandbox.call import IsolatedFunction
def work(): pass
try:
    IsolatedFunction(work)
except TypeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("work is defined in the main program, which another process cannot import")


def test_a_type_checker_knows_the_parameters_and_the_result(tmp_path: Path) -> None:
    script = tmp_path / "calls.py"
    script.write_text("""
from videolavit.sandbox.call import IsolatedFunction
def side(pixels: int, name: str) -> float: return 1.0
isolated = IsolatedFunction(side)
good: float = isolated(1, "a", time_limit=2.0)
isolated(1, time_limit=2.0)
isolated(1, 2, time_limit=2.0)
isolated(1, "a")
bad: str = isolated(1, "a", time_limit=2.0)
""")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={tmp_path / 'cache'}", script],
        env=os.environ | {"MYPYPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
    )
    lines = [line.split(":")[1] for line in checked.stdout.splitlines() if "error" in line]
    assert lines == ["6", "7", "8", "9"], checked.stdout


def _gone(pid: int, within: float = 5) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not alive(pid):
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    """True if a process runs; one that ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return sys.platform != "linux"
