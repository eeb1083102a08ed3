"""Errors of calls in a child process."""


class CallFailed(Exception):
    """The process of a call did not finish it."""


class TimeLimitExceeded(CallFailed):
    """The call took longer than its limit, and its process was killed."""


class ProcessDied(CallFailed):
    """The process of the call ended: native code crashed, or another process killed it."""


class NeedsTooMuchMemory(CallFailed):
    """The call takes more memory than this machine can give to one."""


class ProcessNotStarted(OSError):
    """This machine cannot start another process now: its temporary folder, its processes or its files are used up."""


class ForeignError(Exception):
    """An error of a class that is not sent as itself. Its class has the name of that one."""
