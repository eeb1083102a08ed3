"""Program of a child process. It runs as a file of an isolated interpreter, so that its path holds nothing but the
standard library, installed packages and the packages named here, whatever the parent's path is.

Arguments: number of its socket, process id of its parent, largest address space in bytes, the folder that holds the
function's package, and the function as `package.module:function`.
"""

import os
import sys

STATUS = "/proc/self/status"
"""File of the largest address space that this process has had."""

if __name__ == "__main__":
    descriptor, parent, memory, folder, target = sys.argv[1:]
    installed = next((place for place, name in enumerate(sys.path) if name.endswith("-packages")), len(sys.path))
    sys.path[installed:installed] = dict.fromkeys((__file__.rsplit("/", 3)[0], folder))

    from videolavit.sandbox.layers import close_sandbox, end_with_parent

    end_with_parent(int(parent))
    status = os.open(STATUS, os.O_RDONLY) if os.path.exists(STATUS) else None
    os.dup2(2, 1)  # nothing that a library prints goes elsewhere than to the log
    # before numpy and others start threads, for which it would not hold
    active = close_sandbox(int(memory), ("videolavit", target.partition(".")[0]))

    from videolavit.sandbox.serving import serve

    serve(int(descriptor), int(memory), target, status, active)
