"""Run a program inside a namespace in place of this process, as ip-netns(8) ``exec`` does."""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import pwd
import signal
from pathlib import Path

from vpcctl.errors import CommandError, ConflictError, KernelError
from vpcctl.kernel import namespaces
from vpcctl.kernel.linux import require_privilege

# prctl(2): include/uapi/linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38
FIRST_INHERITABLE = 3


def execute(namespace: str, command: list[str], user: str | None = None, tag: str = "") -> None:
    """Become `command` inside `namespace`, which must have `tag` where one is given; returns only by raising.

    /sys shows the namespace's devices and files of /etc/netns/<namespace> stand in for those of /etc, in a mount
    namespace of its own.  `user` drops to that user, for good.
    """
    require_privilege()
    account = _account(user) if user else None
    descriptor = namespaces.opened(namespace, tag)
    try:
        namespaces.setns(descriptor, namespaces.CLONE_NEWNET)
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.mount("", "/", flags=namespaces.MS_SLAVE | namespaces.MS_REC)
    except OSError as error:
        raise KernelError(f"cannot enter namespace {namespace}", str(error)) from error
    _mount_sys()
    _mount_etc(namespace)
    if account:
        _become(account)
    # Nothing of ours is inherited but the terminal: a descriptor of a namespace is a way out of it.
    os.closerange(FIRST_INHERITABLE, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 65536 else 65536)
    # Python ignores these for itself; exec(3) would hand that on, and a command whose reader has gone would never end.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        hint = "; no shell is in between: write sh -c '…'" if " " in command[0] else ""
        raise CommandError(f"there is no command {command[0]!r}{hint}", found=False) from error
    except OSError as error:
        raise CommandError(f"cannot run {command[0]!r}: {error.strerror}", found=True) from error


def _mount_sys() -> None:
    """Where the kernel lets us: an unprivileged user namespace may be refused."""
    with contextlib.suppress(OSError):
        namespaces.umount("/sys")
    with contextlib.suppress(OSError):
        namespaces.mount("sysfs", "/sys", "sysfs")


def _mount_etc(namespace: str) -> None:
    for file in Path("/etc/netns", namespace).glob("*"):
        target = Path("/etc", file.name)
        if target.exists():
            with contextlib.suppress(OSError):
                namespaces.mount(str(file), target, flags=namespaces.MS_BIND)


def _account(user: str) -> pwd.struct_passwd:
    try:
        found = pwd.getpwnam(user)
    except KeyError as error:
        raise ConflictError(f"there is no user {user!r} on this machine") from error
    if found.pw_uid == 0:
        raise ConflictError(f"user {user} is root, who keeps all power; name another, or leave --user away")
    return found


def _become(account: pwd.struct_passwd) -> None:
    groups = [group.gr_gid for group in grp.getgrall() if account.pw_name in group.gr_mem]
    try:
        os.setgroups(groups)
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    except OSError as error:
        raise KernelError(f"cannot become user {account.pw_name}", str(error)) from error
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise KernelError("cannot give up new privileges", os.strerror(ctypes.get_errno()))
    os.environ["HOME"], os.environ["USER"] = account.pw_dir, account.pw_name
