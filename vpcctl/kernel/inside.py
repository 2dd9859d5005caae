"""Run a program inside a namespace in place of this process, as ip-netns(8) ``exec`` does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Collection, Mapping
from pathlib import Path

from vpcctl.errors import CommandError, ConflictError, KernelError
from vpcctl.kernel import login, namespaces, own_session, processes
from vpcctl.kernel.linux import require_privilege

STREAMS = (0, 1, 2)


def elsewhere(namespace: str, user: str) -> processes.Elsewhere:
    """Where besides `namespace` processes of `user` run, whose sockets a process inside may take."""
    require_privilege()
    return processes.elsewhere(login.find(user).pw_uid, namespace)


def execute(
    namespace: str,
    command: list[str],
    user: str | None,
    additions: Mapping[str, str],
    tag: str = "",
    preserved: int = 0,
) -> None:
    """Become `command` inside `namespace`, or wait for it where it needs a terminal of its own; never returns.

    The namespace must have `tag`, where one is given.

    /sys shows the namespace's devices and files of /etc/netns/<namespace> stand in for those of /etc, in a mount
    namespace of its own.  `user` makes it a login of that user, for good and without any power; `additions` are added
    to the environment.  The `preserved` descriptors after the streams stay open.
    """
    require_privilege()
    kept = _inherited(preserved, bool(user))
    account = login.find(user) if user else None
    descriptor = namespaces.opened(namespace, tag)
    if account:
        own_session.separate(account, kept)
    try:
        namespaces.setns(descriptor, namespaces.CLONE_NEWNET)
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.mount("", "/", flags=namespaces.MS_SLAVE | namespaces.MS_REC)
    except OSError as error:
        raise KernelError(f"cannot enter namespace {namespace}", str(error)) from error
    _mount_sys()
    _mount_etc(namespace)
    # Nothing of ours is inherited but the streams: a descriptor of a namespace is a way out of it.
    _close_descriptors({*STREAMS, *kept})
    environment = dict(os.environ)
    if account:
        login.become(account)
        environment = login.environment(account, environment)
    # Python ignores these for itself; exec(3) would hand that on, and a command whose reader has gone would never end.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment | dict(additions))
    except FileNotFoundError as error:
        hint = "; no shell is in between: write sh -c '…'" if " " in command[0] else ""
        raise CommandError(f"command {command[0]!r} not found{hint}", found=False) from error
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


def _inherited(count: int, login: bool) -> range:
    """The first `count` descriptors after the streams, all of which the caller must have left open for us.

    exec(2) closes our own descriptors, but not the caller's.  A `login` gets no terminal of root, because it could type
    into it.
    """
    kept = range(len(STREAMS), len(STREAMS) + count)
    for descriptor in kept:
        try:
            ours = fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        except OSError:
            ours = True
        if ours:
            raise ConflictError(
                f"descriptor {descriptor} is not open; --preserve-fds {count} passes on descriptors"
                f" {kept.start} to {kept.stop - 1}: open them, or pass a smaller number"
            )
        if login and os.isatty(descriptor):
            raise ConflictError(
                f"descriptor {descriptor} is a terminal, which a command with --user must not get; close it, or omit"
                " --user"
            )
    return kept


def _close_descriptors(kept: Collection[int]) -> None:
    """Close all descriptors except `kept`.  The open ones are listed, because some may lie above the present limit."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))
