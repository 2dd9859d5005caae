"""Everything that the agent listens to, and which place each event concerns.

The host, each router and each instance has a listener for rtnetlink; the host and the routers have one for nftables.
Two directories are watched: the directory of the record, and the directory of the names of namespaces.

A namespace whose events come too fast is muted: its listener is closed, so that it costs nothing, and opened again
later.  Anything may have changed there in between.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vpcctl.agent.schedule import EVERYTHING, HOST, is_tenants
from vpcctl.engine.state import STATE_FILE
from vpcctl.engine.watched import NOTHING, Watched
from vpcctl.errors import ConflictError, GoneError, KernelError
from vpcctl.kernel import claims, monitor
from vpcctl.kernel.directories import Directories, FileChange, open_mounts
from vpcctl.kernel.monitor import Listener, Notice, RouteListener, RulesetListener
from vpcctl.values import dataclass

# A namespace is muted after so many messages; each second subtracts so many from its count.
TENANT_BURST, TENANT_RATE = 2000, 100
TRUSTED_BURST, TRUSTED_RATE = 20_000, 1000
# How long it is muted at first, and at most; on the host and in routers only root can cause a flood.
MUTE_FIRST, MUTE_MOST, TRUSTED_MUTE_MOST = 1.0, 60.0, 4.0
# After so long without a mute, the next mute is a short one again.
FORGIVEN = 120.0
# Mounts come in bursts; the names are read again so long after the first one.
NAMES_DELAY = 0.1
NAMESPACES = claims.RUN_NETNS


HERE = (0, 0)  # stands for the host's own namespace


@dataclass(slots=True)
class _Post:
    """The listeners of one namespace, and how many messages they received."""

    identity: claims.Identity | None
    listeners: list[Listener]
    read: float = 0.0
    messages: float = 0.0


@dataclass(slots=True)
class _Mute:
    """A namespace that is muted, or was recently."""

    until: float
    delay: float
    muted: bool = True


@dataclass(frozen=True, slots=True)
class Event:
    """A change that concerns a place."""

    place: str
    cause: str


class Watch:
    """The listeners, and the events that they bring.

    `watched` is what `arm` was called with.  `record_changed` is true after the record was replaced or removed, until
    the next call of `arm`.
    """

    def __init__(self, state_dir: Path, clock: Callable[[], float] = time.monotonic):
        self._state_dir, self._clock = state_dir, clock
        self._epoll = select.epoll()
        self._directories = Directories()
        self._mounts = open_mounts()
        self.watched = NOTHING
        self._posts: dict[str | None, _Post] = {}
        self._owners: dict[int, str | None] = {}
        self._mutes: dict[str | None, _Mute] = {}
        # Namespaces in which listening failed, and why.
        self.deaf: dict[str | None, str] = {}
        self.record_changed = True
        # When to read the names of namespaces again.
        self._names_due: float | None = None
        self._wakeup, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._epoll.register(self._directories.fileno(), select.EPOLLIN)
        self._epoll.register(self._mounts, select.EPOLLPRI | select.EPOLLERR)

    def close(self) -> None:
        """Close all listeners."""
        for namespace in list(self._posts):
            self._close(namespace)
        self._directories.close()
        self._epoll.close()
        for descriptor in (self._mounts, self._wakeup, self._waker):
            os.close(descriptor)

    @contextlib.contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """Make a signal end `wait`."""
        before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    # -- what to listen to -----------------------------------------------------------------------------------------

    def arm(self, watched: Watched | None = None) -> list[Event]:
        """Listen to all that is on record (None: as before); returns an event for each newly heard place."""
        if watched is not None:
            self.watched, self.record_changed = watched, False
        self._names_due = None
        # Watch the names first: a name that appears later is an event.
        self._directories.watch(NAMESPACES)
        self._directories.watch(self._state_dir)
        for namespace in [one for one in self._posts if one is not None and one not in self.watched.namespaces]:
            self._close(namespace)
            self._mutes.pop(namespace, None)
        for known in [one for one in self.deaf if one is not None and one not in self.watched.namespaces]:
            del self.deaf[known]
        found = [self._armed(namespace) for namespace in (None, *self.watched.namespaces)]
        return [event for event in found if event is not None]

    def _armed(self, namespace: str | None) -> Event | None:
        identity = HERE if namespace is None else claims.mounted(namespace)
        post = self._posts.get(namespace)
        if post is not None and post.identity != identity:
            self._close(namespace)
            if identity is None:
                return Event(self._place(namespace), f"namespace {namespace} is gone")
        elif post is not None or identity is None:
            return None
        mute = self._mutes.get(namespace)
        return None if mute is not None and mute.muted else self._listen(namespace, identity)

    def _listen(self, namespace: str | None, identity: claims.Identity | None) -> Event | None:
        place = self._place(namespace)
        listeners: list[Listener] = []
        try:
            if namespace is None:
                listeners.append(RouteListener(None, monitor.HOST_GROUPS))
            elif namespace in self.watched.routers:
                listeners.append(RouteListener(namespace, monitor.ROUTER_GROUPS))
            else:
                listeners.append(RouteListener(namespace, monitor.INSTANCE_GROUPS))
            if namespace is None or namespace in self.watched.routers:
                listeners.append(RulesetListener(namespace))
        except (KernelError, GoneError, ConflictError) as error:
            for listener in listeners:
                listener.close()
            self.deaf[namespace] = str(error)
            return None
        self.deaf.pop(namespace, None)
        self._posts[namespace] = _Post(identity, listeners)
        for listener in listeners:
            self._owners[listener.fileno()] = namespace
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        return Event(place, f"began to listen in {namespace or 'the host'}")

    def _close(self, namespace: str | None) -> None:
        post = self._posts.pop(namespace, None)
        for listener in post.listeners if post else ():
            self._owners.pop(listener.fileno(), None)
            self._epoll.unregister(listener.fileno())
            listener.close()

    # -- what happens ----------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> list[Event]:
        """Sleep until something happens, a signal comes, or the time is over; the events since the last call.

        If more sockets have messages than are read at once, the next call reads the others.
        """
        moments = [mute.until for mute in self._mutes.values() if mute.muted]
        moments += [] if self._names_due is None else [self._names_due]
        if moments:
            soonest = max(0.0, min(moments) - self._clock())
            timeout = soonest if timeout is None else min(timeout, soonest)
        # Rounded up: a wait that ends too early would only be repeated at once.
        found: list[Event] = []
        for descriptor, _ in self._epoll.poll(-1 if timeout is None else timeout + 0.001):
            if descriptor == self._wakeup:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
            elif descriptor == self._directories.fileno():
                found += self._files(self._directories.read())
            elif descriptor == self._mounts:
                self._names_due = self._names_due or self._clock() + NAMES_DELAY
            elif descriptor in self._owners:
                found += self._heard(self._owners[descriptor], descriptor)
        if self._names_due is not None and self._names_due <= self._clock():
            found += self.arm()
        found += self._unmuted()
        return found

    def _files(self, changes: list[FileChange]) -> list[Event]:
        found = []
        for change in changes:
            if change.directory is None or not change.name:
                # The directory itself was removed, or events were lost.
                self.record_changed, self._names_due = True, self._clock()
                found.append(Event(EVERYTHING, f"directory {change.directory or 'unknown'} changed"))
            elif change.directory == self._state_dir and change.name == STATE_FILE:
                self.record_changed = True
            elif change.directory == NAMESPACES and change.name in self.watched.namespaces:
                self._names_due = self._names_due or self._clock() + NAMES_DELAY
        return found

    def _heard(self, namespace: str | None, descriptor: int) -> list[Event]:
        post = self._posts[namespace]
        listener = next(one for one in post.listeners if one.fileno() == descriptor)
        place = self._place(namespace)
        try:
            heard = listener.read()
        except KernelError as error:
            self._close(namespace)
            return [Event(place, str(error))]
        found = [event for change in heard.changes for event in self._events(namespace, change)]
        if heard.lost:
            found.append(Event(EVERYTHING if namespace is None else place, "events were lost"))
        now = self._clock()
        burst, rate = (TENANT_BURST, TENANT_RATE) if is_tenants(place) else (TRUSTED_BURST, TRUSTED_RATE)
        post.messages = max(0.0, post.messages - (now - post.read) * rate) + heard.messages
        post.read = now
        if post.messages > burst:
            self._mute(namespace, place, now)
            found.append(Event(place, "too many events"))
        return found

    def _events(self, namespace: str | None, change: Notice) -> list[Event]:
        if change.subject == "neighbour":
            # Neighbours that are not on record come and go.
            known = (namespace, change.address) in self.watched.neighbours
            if not (known if change.address else namespace in self.watched.routers):
                return []
        where = "" if namespace is None else f" in {namespace}"
        places = self.watched.concerned(namespace, change.link, change.alias)
        return [Event(place, change.words + where) for place in places]

    def _place(self, namespace: str | None) -> str:
        return HOST if namespace is None else self.watched.namespaces.get(namespace, HOST)

    # -- floods ----------------------------------------------------------------------------------------------------

    def _mute(self, namespace: str | None, place: str, now: float) -> None:
        most = MUTE_MOST if is_tenants(place) else TRUSTED_MUTE_MOST
        before = self._mutes.get(namespace)
        again = before is not None and now - before.until < FORGIVEN
        delay = min(most, before.delay * 2) if before is not None and again else MUTE_FIRST
        self._mutes[namespace] = _Mute(now + delay, delay)
        self._close(namespace)

    def _unmuted(self) -> list[Event]:
        now, found = self._clock(), []
        for namespace, mute in self._mutes.items():
            if mute.muted and mute.until <= now:
                mute.muted = False
                if namespace is None or namespace in self.watched.namespaces:
                    found.append(self._armed(namespace))
        return [event for event in found if event is not None]
