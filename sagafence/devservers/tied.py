"""Becomes another program, which the kernel ends when its owner ends: what `ChildProcess` starts.

    python -I -S tied.py REPORT SIGNAL OWNER USER GROUP PROGRAM ARGUMENT ...

A process of its own, and no function between fork and exec: in a copy of a process with threads such a function may
wait for ever for a lock of a thread that was not copied. REPORT is the descriptor for the reason why the program cannot
be executed; it is closed when it is. SIGNAL is 0 where the kernel has no such request; USER and GROUP are ids, or -1 to
keep ours.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program."""
    report, death_signal, owner, user, group = (int(value) for value in sys.argv[1:6])
    program = sys.argv[6:]
    os.set_inheritable(report, False)
    if user >= 0:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    if death_signal:  # after the change of user, which would clear the request
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != owner:  # the owner died before the request was in place
        sys.exit(1)
    # Python ignores these, and what is ignored stays so in the program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)  # noqa: S606 - becoming the program is the purpose
    except OSError as error:
        os.write(report, f"{program[0]} cannot be used ({error.strerror})".encode())
        sys.exit(1)


main()
