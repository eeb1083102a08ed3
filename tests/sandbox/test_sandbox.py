"""The sandbox against what it is for: a child that was broken into, and a parent that believes nothing it says."""

import ctypes
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.conftest import ROOT, Isolate
from tests.media.videos import fail
from tests.sandbox import hostile
from videolavit.media.errors import MediaError, NotAFile, SourceForbidden, SourceMissing
from videolavit.records.rows import Source
from videolavit.records.source_files import isolated
from videolavit.records.storage import StorageSettings
from videolavit.sandbox.call import IsolatedFunction, IsolatedIterator, describe_layers
from videolavit.sandbox.channel import Channel, MessageKind
from videolavit.sandbox.errors import NeedsTooMuchMemory, ProcessDied, ProcessNotStarted
from videolavit.sandbox.memory import CODE, SMALLEST, large_limit, only_large_one, usual_limit
from videolavit.sandbox.pool import ChildPool


def layers_of_kernel() -> set[str]:
    """Layers that this kernel lets a process have, found without the code that is tested."""
    libc = ctypes.CDLL(None)
    found = {"limits", "no capabilities"}
    if libc.syscall(444, None, 0, 1) > 0:
        found.add("Landlock")
    if Path("/proc/sys/kernel/seccomp/actions_avail").exists() and platform.machine() in ("x86_64", "aarch64"):
        found.add("seccomp")
    if subprocess.run(["unshare", "--user", "--net", "--ipc", "--uts", "true"], capture_output=True).returncode == 0:
        found.add("namespaces")
    return found


def test_every_layer_that_the_kernel_has_is_active(isolate: Isolate) -> None:
    active = isolate(hostile.surroundings).layers(time_limit=60)
    assert {name.rstrip(" 0123456789") for name in active} == layers_of_kernel()
    line = describe_layers()
    assert line.startswith(f"foreign files are decoded in a sandbox: {', '.join(active)}")
    lacking = {"namespaces", "Landlock", "seccomp"} - layers_of_kernel()
    assert set(filter(None, line.partition("; this system lacks ")[2].split(", "))) == lacking


def test_a_broken_decoder_can_do_nothing(isolate: Isolate, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    function = isolate(hostile.crimes)
    ends = function(str(tmp_path), time_limit=60)
    if not {"Landlock", "seccomp"} <= layers_of_kernel():
        pytest.skip("this kernel lacks Landlock or seccomp")
    assert {name for name, end in ends.items() if end == "done"} == set()
    assert (tmp_path / "secret").read_text() == "secret"
    assert function(str(tmp_path), time_limit=60) == ends


def test_the_child_has_nothing_to_steal(isolate: Isolate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither secrets nor code of the folder that the parent is in, or of those that it has on its path."""
    trap = "import os; os.write(2, b'a stranger runs')\n"
    for name in ("queue.py", "socket.py", "pickle.py", "sitecustomize.py", "usercustomize.py"):
        (tmp_path / name).write_text(trap)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "queue.py"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = isolate(hostile.surroundings)(time_limit=60)
    assert "do-not-tell" not in str(found)
    assert not any(name.startswith(("AWS", "PYTHON", "HOME", "USER")) for name in found["environment"])
    assert str(tmp_path) not in found["path"]
    assert "" not in found["path"]
    assert found["in folder"] != "done"


def test_strangers_code_is_not_run(tmp_path: Path) -> None:
    """A `queue.py` in a dataset, beside which a command was started."""
    (tmp_path / "queue.py").write_text("print('a stranger runs')")
    code = (
        "import sys; sys.path.remove('')\n"
        f"sys.path[:0] = [{str(ROOT / 'platform')!r}, {str(ROOT)!r}]\n"
        "from tests.media.videos import process_id\nfrom videolavit.sandbox.call import IsolatedFunction\n"
        "assert IsolatedFunction(process_id)(time_limit=60)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_child_has_limits(isolate: Isolate) -> None:
    """Also of processor time, which ends a child whose parent is stopped."""
    found = isolate(hostile.limits)(time_limit=30)
    assert found["RLIMIT_FSIZE"] == found["RLIMIT_CORE"] == (0, 0)
    assert max(found["RLIMIT_NOFILE"]) <= 256
    assert found["RLIMIT_AS"] == (usual_limit(), usual_limit())
    soft, _ = found["RLIMIT_CPU"]
    assert 0 < soft - found["used"][0] <= 34


def test_a_child_has_no_rights_beyond_its_user_s(isolate: Isolate) -> None:
    """Told by the kernel, not by the child."""
    function = isolate(hostile.limits)
    function(time_limit=60)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{function.pid}/status").read_text().splitlines())
    rights = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    assert rights == dict.fromkeys(rights, 0)
    assert status["NoNewPrivs"] == "1"


def test_decoders_may_have_threads(isolate: Isolate) -> None:
    assert isolate(hostile.start_threads)(32, time_limit=60) == 32


# ---- a parent that believes nothing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        hostile.message(1, hostile.bomb()),
        hostile.message(1, b""),
        hostile.message(1, b"\xff" * 100),
        hostile.message(1, b"\2\0\0\0[]", kind=MessageKind.ITEM),
        hostile.message(1, b"\2\0\0\0[]", kind=MessageKind.REQUEST),
        hostile.message(1, b"\2\0\0\0{}", kind=MessageKind.ERROR),
        hostile.message(1, b"\2\0\0\0[]", kind=MessageKind.CALL),
        hostile.message(1, b"\2\0\0\0[]", kind=200),
        hostile.message(7, b"\2\0\0\0[]"),
        hostile.message(1, b"", length=3 << 30),
        hostile.message(1, b"", length=1 << 62),
        hostile.message(1, b'\x2a\0\0\0{"is": "object", "class": "X", "fields": {}}'),
    ],
    ids=["pickle", "empty", "noise", "item", "request", "error", "call", "kind", "number", "3GiB", "2^62", "class"],
)
def test_a_lie_ends_the_child_and_nothing_else(
    isolate: Isolate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function = isolate(hostile.raw)
    with pytest.raises(ProcessDied, match="does not keep to the protocol"):
        function([body], time_limit=60)
    assert function.pid is None
    assert function([], "answer", time_limit=60) == "honest"
    assert not (tmp_path / "exploded").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_an_announced_length_takes_no_memory(isolate: Isolate) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Exception, match="not finished after 3 s"):
        isolate(hostile.raw)([hostile.message(1, b"x", length=2 << 30)], time_limit=3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_left_over_answers_are_nobodys(isolate: Isolate) -> None:
    """A second answer behind the first is not taken for that of the next call."""
    function = isolate(hostile.raw)
    forged = hostile.message(1, b"\x08\0\0\0" + b'"forged"')
    assert function([forged], "answer", time_limit=60) == "forged"
    with pytest.raises(ProcessDied, match="a message for call 1 in call 2"):
        function([], "answer", time_limit=60)
    assert function([], "answer", time_limit=60) == "honest"


@pytest.mark.parametrize(
    "body",
    [hostile.message(1, b"", length=3 << 30), hostile.message(7, b"\2\0\0\0[]"), hostile.message(1, b"x")[:9]],
    ids=["length", "number", "cut"],
)
def test_files_of_a_child_are_not_kept(isolate: Isolate, body: bytes) -> None:
    """Descriptors beside a lie would fill the parent's table, one for each hostile file."""
    function = isolate(hostile.smuggle)
    function.layers(time_limit=60)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(Exception, match=r"protocol|not finished"):
        function([body], time_limit=3)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_what_a_child_prints_does_not_control_a_terminal(isolate: Isolate, capfd: pytest.CaptureFixture[str]) -> None:
    """Not by characters of one byte, nor by those of Unicode, which are two in UTF-8."""
    isolate(hostile.write_to_the_log)(b"a\x1b[2Jb\rc\xc2\x9bd\xe2\x80\xaee\n", time_limit=60)
    printed, deadline = "", time.monotonic() + 10
    while "\n" not in printed and time.monotonic() < deadline:
        printed += capfd.readouterr().err
        time.sleep(0.02)
    assert printed == "a?[2Jb?c??d???e\n"


def test_a_fault_while_receiving_ends_the_child(isolate: Isolate, monkeypatch: pytest.MonkeyPatch) -> None:
    function = isolate(hostile.raw)
    assert function([], "answer", time_limit=60) == "honest"
    first = function.pid

    def short_of_memory(*arguments: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Channel, "receive", short_of_memory)
        with pytest.raises(MemoryError):
            function([], "answer", time_limit=60)
    assert function.pid is None
    assert function([], "answer", time_limit=60) == "honest"
    assert function.pid != first


# ---- streams --------------------------------------------------------------------------------------------------------


def test_items_come_one_by_one() -> None:
    function = IsolatedIterator(hostile.count)
    with closing(function):
        assert list(function(5, 1000, 0.0, time_limit=60)) == [number.to_bytes(1000) for number in range(5)]
        first = function.pid
        assert len(list(function(3, 1, 0.0, time_limit=60))) == 3
        assert function.pid == first
        for item in function(10**9, 1000, 0.0, time_limit=60):  # never ends by itself
            assert item == bytes(1000)
            break
        with pytest.raises(Exception, match="nothing for 1 s"):
            list(function(3, 1, 5.0, time_limit=1))
        assert function.pid is None


def test_a_stream_may_take_longer_than_each_item() -> None:
    with closing(IsolatedIterator(hostile.count)) as function:
        assert len(list(function(6, 1, 0.5, time_limit=2))) == 6


def test_threads_share_children() -> None:
    pool = ChildPool(lambda: IsolatedFunction(hostile.start_threads))
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda count: pool(count, time_limit=60), range(6))) == list(range(6))
    assert 1 <= len(pool._idle) <= 3


# ---- life and death -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["announce_and_hold", "announce_and_sleep"])
def test_the_child_ends_with_its_parent(name: str) -> None:
    """Also while native code holds the interpreter's lock."""
    code = (
        f"from tests.sandbox.hostile import {name}\nfrom videolavit.sandbox.call import IsolatedFunction\n"
        f"IsolatedFunction({name})('child:', time_limit=600)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stderr is not None
        child = int(next(line for line in parent.stderr if line.startswith("child:")).removeprefix("child:"))
        assert Path(f"/proc/{child}").exists()
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists()


def test_the_child_outlives_the_thread_that_called_first(isolate: Isolate) -> None:
    function = isolate(hostile.start_threads)
    thread = threading.Thread(target=lambda: function(1, time_limit=60))
    thread.start()
    thread.join()
    first = function.pid
    assert first is not None
    time.sleep(0.2)
    assert function(1, time_limit=60) == 1
    assert function.pid == first


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_large_work_waits_for_its_turn(isolate: Isolate) -> None:
    count = usual_limit()
    if large_limit() < count + (1 << 30):
        pytest.skip("too little memory is free")
    function = isolate(hostile.allocate)
    assert function(1, time_limit=60) == 1
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with only_large_one(time.monotonic() + 60):
            held.set()
            free.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    with pytest.raises(Exception, match="not finished after 2 s"):
        function(count, time_limit=2)
    free.set()
    other.join()
    assert function(count, time_limit=60) == count


def test_a_lock_of_somebody_else_is_no_fault_of_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"videolavit-{os.getuid()}.lock").symlink_to("somewhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ProcessNotStarted, match="cannot be locked"), only_large_one(time.monotonic() + 1):
        raise AssertionError


def test_a_stream_that_runs_out_of_memory_goes_on_in_a_larger_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that are out already are not repeated."""
    monkeypatch.setattr("videolavit.sandbox.call.usual_limit", lambda: CODE + SMALLEST)
    if large_limit() < 2 * (CODE + SMALLEST):
        pytest.skip("too little memory is free")
    with closing(IsolatedIterator(hostile.count_and_allocate)) as function:
        assert list(function(3, CODE + SMALLEST, time_limit=60)) == [0, 1, 2, 3]
        assert function.pid is None
        items = function(3, 1 << 46, time_limit=60)
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(NeedsTooMuchMemory, match="more memory than there is"):
            next(items)


def test_little_memory_is_no_excuse(isolate: Isolate, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small machine, libraries alone take most of a child's address space: errors stay what they are."""
    monkeypatch.setattr("videolavit.sandbox.call.usual_limit", lambda: CODE + SMALLEST)
    with pytest.raises(MediaError, match="no such luck"):
        isolate(fail)("no such luck", time_limit=60)


def test_what_does_not_fit_is_named(isolate: Isolate) -> None:
    with pytest.raises(NeedsTooMuchMemory, match="more memory than there is"):
        isolate(hostile.allocate)(1 << 46, time_limit=60)
    with pytest.raises(NeedsTooMuchMemory, match="kept"):  # a decoder may say anything where memory is short
        isolate(hostile.allocate_and_fail)(int(large_limit() * 0.7), time_limit=60)


# ---- files ----------------------------------------------------------------------------------------------------------


def _reader(function: Any) -> IsolatedFunction[*tuple[Any, ...], Any]:
    return isolated(function, StorageSettings())


def test_files_come_from_the_parent(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4
    local = tmp_path / "file.bin"
    local.write_bytes(data)
    with fsspec.open("memory://file.bin", "wb") as file:
        file.write(data)
    for address in (str(local), "memory://file.bin"):
        assert _reader(hostile.read)(address, time_limit=60) == data
        assert _reader(hostile.read_parts)(address, time_limit=60) == [data[100:140], data[:40], data[-50:-10]]


def test_only_files_that_the_call_is_about(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    reader = _reader(hostile.read)
    with pytest.raises(SourceForbidden):
        reader(str(secret)[::-1], "another", time_limit=60)  # the function turns the address around
    for named in (f"{secret}/video.mp4", f"{secret}#video.mp4"):  # only tars and tables hold what is named after them
        with pytest.raises(SourceForbidden):
            reader(str(secret)[::-1], named, time_limit=60)
    assert reader(str(secret), time_limit=60) == b"secret"
    row = Source(source="a.mp4", url="a.mp4", kind="video", text=str(secret), extra={"note": f"{tmp_path}/x.parquet"})
    with pytest.raises(SourceForbidden):  # a caption is no address
        _reader(hostile.read_of_row)(str(secret)[::-1], row, time_limit=60)
    with pytest.raises(SourceMissing, match="nothing"):
        reader(str(tmp_path / "nothing"), time_limit=60)
    with pytest.raises(NotAFile):
        reader(str(tmp_path), time_limit=60)
    with pytest.raises(SourceForbidden):
        IsolatedFunction(hostile.read, errors=(MediaError,))(str(secret), time_limit=60)
