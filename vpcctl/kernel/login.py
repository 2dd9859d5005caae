"""A complete login of a user without capabilities: the account, its environment, and how a process becomes the user."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from vpcctl.errors import ConflictError, KernelError

# The search path is fixed: root's own may name directories that the user cannot read, or that others can write.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAIL_DIRECTORY = "/var/mail"
# What describes the terminal, the language and the time to programs.  Everything else may be a secret of root's.  The
# categories of locale(7) are listed one by one, because any word can follow LC_.
_CATEGORIES = (
    "ALL CTYPE NUMERIC TIME COLLATE MONETARY MESSAGES PAPER NAME ADDRESS TELEPHONE MEASUREMENT IDENTIFICATION".split()
)
KEPT = ("TERM", "COLORTERM", "TZ", "LANG", "LANGUAGE", *(f"LC_{category}" for category in _CATEGORIES))

# The capabilities that files of network programs have, ping(8) first: CAP_NET_BIND_SERVICE and CAP_NET_RAW.
FILE_CAPABILITIES = frozenset({10, 13})

# prctl(2): include/uapi/linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
# capset(2): include/uapi/linux/capability.h
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
# keyctl(2) has no function in libc: include/uapi/linux/keyctl.h, and the number of the system call by uname(2)'s
# machine, for programs of the machine's own word size.
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_KEYCTL = {
    "x86_64": 250,
    "aarch64": 219,
    "riscv64": 219,
    "loongarch64": 219,
    "ppc64": 271,
    "ppc64le": 271,
    "s390x": 280,
}
_SYS_KEYCTL_32 = {"x86_64": 288, "i386": 288, "i486": 288, "i586": 288, "i686": 288} | dict.fromkeys(
    ("aarch64", "armv6l", "armv7l", "armv8l"), 311
)

_libc = ctypes.CDLL(None, use_errno=True)


def find(user: str) -> pwd.struct_passwd:
    """The account of `user`; ConflictError for a user that does not exist, or that is root."""
    try:
        account = pwd.getpwnam(user)
    except (KeyError, ValueError) as error:
        raise ConflictError(f"user {user!r} not found on this machine; `getent passwd` lists the users") from error
    if account.pw_uid == 0:
        raise ConflictError(f"user {user} is root, and keeps all capabilities; name another user, or omit --user")
    return account


def environment(account: pwd.struct_passwd, callers: Mapping[str, str]) -> dict[str, str]:
    """The environment of a fresh login; of the caller's only what describes terminal, language and time."""
    return {name: callers[name] for name in KEPT if name in callers} | {
        "HOME": account.pw_dir or "/",
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
        "MAIL": f"{MAIL_DIRECTORY}/{account.pw_name}",
        "PATH": PATH,
    }


def become(account: pwd.struct_passwd) -> None:
    """Turn this process into one of the user's, for good; KernelError where anything of root's would stay.

    Until the next exec(2) no process may trace this one: its memory still holds what root read.
    """
    _stand_for_memory()
    _drop_bounds()
    try:
        os.setgroups(os.getgrouplist(account.pw_name, account.pw_gid))
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    except OSError as error:
        raise KernelError(f"cannot become user {account.pw_name}", str(error)) from error
    _drop_capabilities()
    _prctl("give up new privileges", _PR_SET_NO_NEW_PRIVS, 1)
    _prctl("protect the process from being traced", _PR_SET_DUMPABLE, 0)
    _join_keyring()
    # A strict mask of root's stays as strict, and a lax one becomes the usual one.
    os.umask(os.umask(0o077) | 0o022)
    _enter_directory(account)


def _prctl(purpose: str, *arguments: int) -> None:
    if _libc.prctl(*(ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:5])) != 0:
        raise KernelError(f"cannot {purpose}", os.strerror(ctypes.get_errno()))


def _stand_for_memory() -> None:
    """Give up a protection of root's from the kernel's search for memory; it would be at the cost of others."""
    with contextlib.suppress(OSError, ValueError):
        file = Path("/proc/self/oom_score_adj")
        if int(file.read_text()) < 0:
            file.write_text("0")


def _drop_bounds() -> None:
    """Empty the bounding and the ambient set as far as allowed: a second defence beside "no new privileges".

    FILE_CAPABILITIES stay in the bounding set: exec(2) refuses a program whose file has a capability that is not in the
    set.  If it is in the set, but no new privileges are allowed, the program starts without it (security/commoncap.c).
    """
    for capability in sorted(set(range(64)) - FILE_CAPABILITIES):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            break
    _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)


def _drop_capabilities() -> None:
    """Empty all sets: leaving uid 0 does so, unless securebits or PR_SET_KEEPCAPS say otherwise (capabilities(7))."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise KernelError("cannot give up capabilities", os.strerror(ctypes.get_errno()))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kept = [name for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(status.get(name, "0"), 16)]
    if kept:
        raise KernelError("cannot give up capabilities", f"{', '.join(kept)} not empty")


def _join_keyring() -> None:
    """Leave root's session keyring for an empty one of the user's (session-keyring(7)).

    Called as the user, who then owns it and pays for it.  The user's own keyring is not linked to it, as a login by
    PAM would: what the user keeps there is for the host, and an instance does not get it unasked.
    """
    machine = os.uname().machine
    number = (_SYS_KEYCTL if ctypes.sizeof(ctypes.c_void_p) == 8 else _SYS_KEYCTL_32).get(machine)
    if number is None:
        raise KernelError(f"cannot leave root's session keyring: keyctl(2) is unknown on {machine}")
    if _libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None) >= 0:
        return
    refusal = ctypes.get_errno()
    if refusal != errno.ENOSYS:  # that is a kernel without keys, or a filter that the command inherits
        hint = "; allow keyctl(2) where a seccomp filter denies it" if refusal == errno.EPERM else ""
        raise KernelError("cannot leave root's session keyring", os.strerror(refusal) + hint)


def _enter_directory(account: pwd.struct_passwd) -> None:
    """Stay in the working directory where the user can get there by its path, else go home, else to /.

    A process can use its working directory even if the path to it is closed.
    """
    for directory in (_working_directory(), account.pw_dir, "/"):
        with contextlib.suppress(OSError):
            if directory:
                os.chdir(directory)
                return
    raise KernelError("cannot enter any directory", f"not even / as {account.pw_name}")


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted, or is outside this root
        return None
