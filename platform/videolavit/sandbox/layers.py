"""Layers of the sandbox: rights that a child process gives up before it reads a foreign byte.

Each layer is used where the kernel has it; `close_sandbox` says which are active. They are reached through `ctypes`,
because no kept library has them. Numbers are those of the kernel's interface, which never change.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)

# ---- of all architectures -------------------------------------------------------------------------------------------

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SIGKILL = 9
_CAPABILITIES_VERSION = 0x20080522
_LAST_CAPABILITY = 63
_CLONE_NEWNET, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWUTS = 0x40000000, 0x08000000, 0x10000000, 0x04000000

OPTIONAL_LAYERS = ("namespaces", "Landlock", "seccomp")
"""Layers that some systems lack."""

_OPEN_FILES = 256
"""Files that a child may have open."""

_THREADS = 512
"""Threads that a child in a user namespace of its own may have; libraries start one for each core."""


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends, whatever native code does meanwhile."""
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the line above
        os._exit(0)


def close_sandbox(memory: int, packages: Iterable[str]) -> list[str]:
    """Gives up what the work on foreign bytes does not need, in this process for good. No thread may run yet.

    Args:
        memory: Largest address space, in bytes.
        packages: Packages that may still be read, beside those that are installed.

    Returns:
        Names of the layers that are active.
    """
    active = ["limits"]
    with suppress(OSError):
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS)
        active.append("namespaces")
        resource.setrlimit(resource.RLIMIT_NPROC, (_THREADS, _THREADS))
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _drop_capabilities()
    active.append("no capabilities")
    with suppress(OSError):
        active.append(f"Landlock {_restrict_files(packages)}")
    with suppress(OSError):
        _filter_system_calls()
        active.append("seccomp")
    return active


def limit_processor_time(seconds: float) -> None:
    """Has the kernel end this process after some more seconds of processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _call(name: str, *arguments: int) -> int:
    result = int(getattr(_libc, name)(*(ctypes.c_long(one) for one in arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def _drop_capabilities() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # refused where there is nothing to drop
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITIES_VERSION, 0))
    nothing = ctypes.create_string_buffer(24)
    if _libc.capset(header, nothing) < 0:
        raise OSError(ctypes.get_errno(), "capset")


# ---- Landlock: the file system --------------------------------------------------------------------------------------

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights to files, by the first version of Landlock that knows them."""

_EXECUTE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
_NETWORK_RIGHTS, _SCOPES = 0b11, 0b11
"""TCP: to bind and to connect, from version 4; abstract sockets and signals to processes outside, from version 6."""

_SYSTEM_FILES = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/null",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
)
"""Files that libraries read when they are loaded, none of them private."""


def _restrict_files(packages: Iterable[str]) -> int:
    """Leaves nothing of the file system but code, to be read. Returns the version of Landlock.

    Of folders on the path that are no installation, such as a checkout, only the named packages can be read, and the
    names of the rest.
    """
    version = _call("syscall", _LANDLOCK_CREATE_RULESET, 0, 0, _ASK_VERSION)
    rights = max(value for first, value in _FILE_RIGHTS.items() if first <= version)
    network, scopes = _NETWORK_RIGHTS if version >= 4 else 0, _SCOPES if version >= 6 else 0
    attributes = struct.pack("<QQQ", rights, network, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = _call("syscall", _LANDLOCK_CREATE_RULESET, ctypes.addressof(buffer), len(attributes), 0)
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed |= {str(sysconfig.get_config_var("LIBDIR") or ""), *os.environ.get("LD_LIBRARY_PATH", "").split(":")}
    ours = {f"{folder}/{package}" for folder in sys.path for package in packages}
    for name in filter(os.path.exists, {*_SYSTEM_FILES, *installed, *ours}):
        _allow(ruleset, name, _READ_FILE | _EXECUTE | _READ_FOLDER)
    for name in filter(os.path.isdir, sys.path):
        _allow(ruleset, name, _READ_FOLDER)
    _call("syscall", _LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return version


def _allow(ruleset: int, name: str, rights: int) -> None:
    """Allows rights to a file, or to a folder and all that is in it."""
    beneath = os.open(name, os.O_PATH | os.O_CLOEXEC)
    allowed = rights if os.path.isdir(name) else rights & ~_READ_FOLDER
    buffer = ctypes.create_string_buffer(struct.pack("<Qi", allowed, beneath), 12)
    _call("syscall", _LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.addressof(buffer), 0)
    os.close(beneath)


# ---- seccomp: system calls ------------------------------------------------------------------------------------------

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_ALLOW, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
"""Answers of the filter: allowed; EPERM; ENOSYS, so that libc tries the older call."""

_LOAD, _EQUAL, _ALL_OF, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_CLONE_THREAD, _CLONE3 = 0x00010000, 435
_TERMINAL_INPUT = 0x5412
"""The request of ioctl that types into a terminal."""

_LATER = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 440, 442, 452, 463, 466, 467, 469)
"""Calls of the same number on all architectures: signals and memory of other processes, rings of requests, mounts, and
changes to files by their names."""

_ARCHITECTURES = {
    # architecture of the filter; calls that are refused; and those that depend on their arguments:
    # clone and ioctl; kill and tgkill, only to this process; prlimit64 and sched_setaffinity, of this process or 0
    "x86_64": (
        0xC000003E,
        (
            *(29, 41, 42, 43, 49, 50, 53, 57, 58, 59, 64, 68, 90, 91, 92, 93, 94, 101, 129, 132, 133, 134, 135, 141),
            *(
                142,
                144,
                155,
                161,
                165,
                166,
                167,
                169,
                175,
                176,
                188,
                189,
                190,
                197,
                198,
                199,
                200,
                235,
                240,
                246,
                248,
                249,
                250,
            ),
            *(
                251,
                259,
                260,
                261,
                268,
                272,
                280,
                288,
                297,
                298,
                303,
                304,
                308,
                310,
                311,
                312,
                313,
                314,
                319,
                320,
                321,
                322,
                323,
            ),
        ),
        (56, 16, ((62, False), (234, False), (302, True), (203, True))),
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(
                5,
                6,
                7,
                14,
                15,
                16,
                30,
                33,
                39,
                40,
                41,
                51,
                52,
                53,
                54,
                55,
                88,
                92,
                97,
                104,
                105,
                106,
                117,
                118,
                119,
                130,
                138,
            ),
            *(
                140,
                142,
                180,
                186,
                190,
                194,
                198,
                199,
                200,
                201,
                202,
                203,
                217,
                218,
                219,
                221,
                224,
                240,
                241,
                242,
                264,
                265,
            ),
            *(268, 270, 271, 272, 273, 274, 279, 280, 281, 282, 294),
        ),
        (220, 29, ((129, False), (131, False), (261, True), (122, True))),
    ),
}
"""Sockets, programs, processes, other processes, owners and modes of files, mounts, kernel modules and the like."""


def _filter_system_calls() -> None:
    """Refuses system calls that decoding does not need. Raises OSError where the kernel or the processor is unknown."""
    if platform.machine() not in _ARCHITECTURES:
        raise OSError("no filter for this processor")
    program = _program(*_ARCHITECTURES[platform.machine()], os.getpid())
    filters = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(filters))
    buffer = ctypes.create_string_buffer(described, len(described))
    _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(buffer), 0, 0)


def _program(
    architecture: int, refused: Iterable[int], special: tuple[int, int, tuple[tuple[int, bool], ...]], process: int
) -> bytes:
    """Filter in the kernel's machine language. Jumps are counted from the next line."""
    clone, ioctl, of_processes = special
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, 0x40000000),  # the calls of another interface of the same processor
        (_RETURN, 0, 0, _REFUSE),
        (_EQUAL, 0, 1, _CLONE3),  # a filter cannot look into memory, where its flags lie
        (_RETURN, 0, 0, _UNKNOWN),
    ]
    for number in (*refused, *_LATER):
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    lines += [
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _ARGUMENTS_AT),
        (_ALL_OF, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 4, ioctl),
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8),
        (_EQUAL, 0, 1, _TERMINAL_INPUT),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for number, zero_is_own in of_processes:
        lines += [
            (_EQUAL, 0, 5, number),
            (_LOAD, 0, 0, _ARGUMENTS_AT),
            (_EQUAL, 1, 0, process),
            (_EQUAL, 0, 1, 0 if zero_is_own else process),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _REFUSE),
        ]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)
