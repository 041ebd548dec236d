"""What becomes the command of `tenfold lock run`: a script of its own, so that it needs nothing but the standard library.

Law: the command leads a process group of its own before it does anything, and dies with the process that keeps its lock alive. The
terminal is its own while it runs, if it was that process's: a key that interrupts reaches it once, and none stops it.

Arguments: the parent's process id, a file descriptor, the command. The descriptor is closed by the command's beginning; else the
number of the error is written to it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, told = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(told, False)
    os.setpgid(0, 0)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that line
        os._exit(1)
    _take_terminal(os.getpgid(parent))
    try:
        os.execvp(sys.argv[3], sys.argv[3:])
    except OSError as error:
        os.write(told, str(error.errno).encode())
        os._exit(127)


def _take_terminal(group: int) -> None:
    try:
        if os.tcgetpgrp(0) != group:
            return
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(0, os.getpgid(0))
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # nobody would wake it
    except OSError:  # standard input is no terminal
        return


if __name__ == "__main__":
    main()
