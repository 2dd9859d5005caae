"""The kernel of this machine: the four verbs, spread over namespaces, links, settings and tables."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpcctl.errors import ConflictError, GoneError, KernelError, PrivilegeError
from vpcctl.kernel import checksums, claims, gate_texts, namespaces, settings, sockets, tables, verified
from vpcctl.kernel.links import ABSENCE, LOOPBACK, Rtnl, contended
from vpcctl.kernel.lookups import Lookups
from vpcctl.kernel.netlink import NetlinkError
from vpcctl.kernel.routes import read_host
from vpcctl.kernel.rtnetlink import RTN_LOCAL, RTN_UNICAST
from vpcctl.kernel.survey import Survey
from vpcctl.model.network import DEFAULT_MTU, MTUS, NAT_PORTS
from vpcctl.names import TAGGED
from vpcctl.resources.kinds import (
    Address,
    Bridge,
    ChecksumLink,
    Detour,
    FdbEntry,
    Forwarding,
    Item,
    LinkSetting,
    LinkUp,
    Mtu,
    Namespace,
    Neighbour,
    Open,
    Port,
    ProxyDelay,
    Route,
    Ruleset,
    Setting,
    Veth,
    where,
)
from vpcctl.resources.plan import Ensure, Plan
from vpcctl.resources.protocol import ABSENT, RIGHT, Condition, HostFacts, HostLink, Status
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.analysis.tracking import Counted, Key, Selection, Tracked
    from vpcctl.kernel.conntrack import Tracking
    from vpcctl.model.network import Publication

# Open sockets are kept for this many namespaces, so that thousands of instances cost no thousands of descriptors.
OPEN_NAMESPACES = 128
# How often the name of an instance's link is made free for ours, and how often by deleting the link that has it.
ATTEMPTS, GENTLE_ATTEMPTS = 32, 4
CAP_SYS_ADMIN, CAP_NET_ADMIN = 21, 12
# How many flows connection tracking holds in a namespace; some kernels hide it from user namespaces.
TRACKED = settings.ROOT / "net/netfilter/nf_conntrack_count"


@contextlib.contextmanager
def _translated(words: str) -> Iterator[None]:
    """Raise what the kernel raises as a KernelError that begins with `words`."""
    try:
        yield
    except NetlinkError as error:
        raise KernelError(words, os.strerror(error.errno or 0)) from error
    except OSError as error:
        raise KernelError(words, str(error)) from error


# random(4): new after each boot.
BOOT_ID = "/proc/sys/kernel/random/boot_id"


class LinuxKernel:
    """Acts on the namespaces of the calling process; needs CAP_NET_ADMIN and CAP_SYS_ADMIN there.

    `notes` is the file in which it keeps which rulesets were compared as right (see `verified`); None for no file.
    """

    def __init__(self, notes: Path | None = None) -> None:
        require_privilege()
        with _translated("cannot determine in whose namespace vpcctl runs"):
            inside = claims.own_name()
        if inside is not None:
            raise ConflictError(f"vpcctl runs in the namespace of {inside}; run it on the host instead")
        self._open: dict[str | None, tuple[Rtnl, tables.Context | None]] = {}
        self._notes = verified.Notes(notes)
        self._scratch: tables.Nft | None = None
        # The links that forwarded when the host was looked at last.
        self._forwarded: set[int] = set()

    def close(self) -> None:
        """Close all sockets."""
        for namespace in list(self._open):
            self._close(namespace)
        self._notes.save()

    def boot_id(self) -> str:
        try:
            return Path(BOOT_ID).read_text().strip()
        except OSError as error:
            raise KernelError(f"cannot read {BOOT_ID}", error.strerror or "") from error

    # -- the host ------------------------------------------------------------------------------------------------

    @_translated("cannot read the host's network state")
    def facts(self) -> HostFacts:
        rtnl = self._rtnl(None)
        present = rtnl.links()
        ours = {link.index for link in present.values() if link.alias.startswith(TAGGED)}
        self._forwarded = {link.index for link in present.values() if link.forwards}
        links = {
            link.index: (name, link)
            for name, link in present.items()
            if not link.alias.startswith(TAGGED) and name != LOOPBACK and not link.enslaved
        }
        routed, leading, networks, mtus = set(), set(), set(), set()
        # Routes of all tables: a VPN may have a table of its own, chosen by rules.
        for route in rtnl.routes(4):
            if route.kind == RTN_LOCAL and not ours.issuperset(route.links):
                # The host's own address, also one on its loopback interface.
                networks.add(route.destination)
            indices = set(route.links) & links.keys()
            if route.kind != RTN_UNICAST or not indices:
                continue
            routed |= indices
            if route.alive:
                leading |= indices
            if route.outward:
                mtus |= {links[index][1].mtu for index in indices}
            else:
                networks.add(route.destination)
        return HostFacts(
            tuple(
                HostLink(index, links[index][0], bool(links[index][1].forwards), index in leading)
                for index in sorted(routed)
            ),
            tuple(sorted(networks)),
            settings.forwarding(),
            read_host().addresses,
            sockets.served_ports(*NAT_PORTS),
            # The MTU for a new VPC: that of the narrowest link to the internet.
            max(MTUS[0], min([DEFAULT_MTU, *mtus])),
        )

    # -- the verbs -----------------------------------------------------------------------------------------------

    @_translated("cannot read the kernel's network state")
    def observe(self, items: Iterable[Item]) -> Mapping[Item, Condition]:
        by_namespace: dict[str | None, list[Item]] = defaultdict(list)
        for item in items:
            by_namespace[getattr(item, "namespace", None)].append(item)
        found: dict[Item, Condition] = {}
        for namespace, members in by_namespace.items():
            found.update(self._observe_namespace(namespace, members))
        return found

    def _observe_namespace(self, namespace: str | None, items: list[Item]) -> dict[Item, Condition]:
        if namespace is not None and not namespaces.is_namespace(namespace):
            return dict.fromkeys(items, ABSENT)
        tag = next((item.tag for item in items if isinstance(item, Namespace)), "")
        why = namespaces.foreign(namespace, tag)
        if why:
            return dict.fromkeys(items, Condition(Status.FOREIGN, why))
        if namespace is None or any(isinstance(item, (Ruleset, Bridge)) for item in items):
            return self._surveyed(namespace, items, Survey(self._rtnl(namespace)))
        try:
            with contextlib.closing(Lookups(self._rtnl(namespace))) as lookups:
                return self._surveyed(namespace, items, lookups)
        except (NetlinkError, OSError, KernelError) as error:
            # Trouble in one instance's namespace is its own.
            return dict.fromkeys(items, Condition(Status.DIFFERENT, f"cannot be read: {error}"))

    def _surveyed(self, namespace: str | None, items: list[Item], survey: Survey) -> dict[Item, Condition]:
        found: dict[Item, Condition] = {}
        handlers = {item: HANDLERS[type(item)] for item in items}
        with self._rtnl(namespace).inside():
            found.update({item: one.observe(self, survey, item) for item, one in handlers.items() if one.inside})
        found.update({item: one.observe(self, survey, item) for item, one in handlers.items() if not one.inside})
        return found

    def _observe_veth(self, survey: Survey, item: Veth) -> Condition:
        near = survey.observe(item)
        return self._observe_far_end(item, survey.links[item.name].index) if near == RIGHT else near

    def _observe_far_end(self, item: Veth, near: int) -> Condition:
        """Compare the other end of a pair, whose end with the index `near` is right.

        Root inside an instance may have moved, renamed or replaced it.  Another item reports a missing namespace.
        """
        namespace = item.peer_namespace
        if namespace is not None and (not namespaces.is_namespace(namespace) or namespaces.foreign(namespace)):
            return RIGHT
        far = self._rtnl(item.peer_namespace).link(item.peer_name)
        if far is None or far.peer != near or far.name != item.peer_name:
            return Condition(Status.DIFFERENT, f"has no end {item.peer_name} in {where(item.peer_namespace)}")
        if far.mac != item.peer_mac:
            return Condition(Status.DIFFERENT, f"has MAC {far.mac} at its other end, expected {item.peer_mac}")
        if item.peer_namespace is None and far.alias != item.tag:
            return Condition(Status.DIFFERENT, f"has an end {item.peer_name} in the host that is not marked as ours")
        return RIGHT

    def _observe_tag(self, item: Namespace) -> Condition:
        if not namespaces.is_namespace(item.namespace):
            return ABSENT
        why = namespaces.foreign(item.namespace, item.tag)
        return Condition(Status.FOREIGN, why) if why else RIGHT

    @_translated("cannot read the kernel's network state")
    def check(self, plan: Plan) -> None:
        """Names that we are about to take must be free or ours already."""
        touched = {step.item.namespace for step in plan.steps if isinstance(step, Ensure)}
        touched -= {step.item.namespace for step in plan.steps if isinstance(step.item, Namespace)}
        problems = [why for name in sorted(filter(None, touched)) if (why := namespaces.displaced(name, ""))]
        for step in plan.steps:
            item = step.item
            if isinstance(item, Namespace):
                problems += self._obstacle(item, isinstance(step, Ensure))
            elif not isinstance(step, Ensure):
                continue
            elif isinstance(item, Veth) and item.peer_namespace is None:
                alias = self._rtnl(None).alias(item.peer_name)
                if alias is not None and alias != item.tag:
                    problems.append(f"the host has a link {item.peer_name} that is not ours; remove or rename it")
            elif isinstance(item, Ruleset):
                nft = self._nft(None)  # without the library nothing may begin
                for table in tables.foreign(item, nft) if item.namespace is None else ():
                    problems.append(f"the host has a table `{table}` that is not ours; rename or delete it")
        if problems:
            raise ConflictError("\n".join(problems))

    def _obstacle(self, item: Namespace, making: bool) -> list[str]:
        """What keeps a namespace from being made, or ours from being removed."""
        name, tag = item.namespace, item.tag
        displaced = namespaces.displaced(name, tag)
        if displaced and (making or namespaces.owner(name) == tag):
            return [displaced]
        if not making or not os.path.lexists(namespaces.path(name)):
            return []
        if self._observe_tag(item) == RIGHT or namespaces.is_placeholder(name, tag):
            return []
        remedy = f"remove it (ip netns delete {name}) or choose another name"
        return [f"namespace {name} exists already and is not ours; {remedy}"]

    @_translated("cannot find out who has ports of the host")
    def port_holders(self, publications: Sequence[Publication]) -> Mapping[Publication, str]:
        from vpcctl.kernel import legacy_tables, port_holders

        rules = port_holders.foreign_rules(tables.everything(self._nft(None)) + legacy_tables.text())
        found = port_holders.holders(publications, list(sockets.listeners()), rules, read_host().addresses)
        inodes = {
            one.inode for members in found.values() for one in members if isinstance(one, sockets.ListeningSocket)
        }
        names = port_holders.processes(inodes)
        return {item: port_holders.in_words(members, names) for item, members in found.items()}

    def ensure(self, item: Item) -> None:
        self._act(item, HANDLERS[type(item)].ensure)

    def remove(self, item: Item) -> None:
        namespace = getattr(item, "namespace", None)
        kept = isinstance(item, (Namespace, Veth))
        if namespace is not None and not namespaces.is_namespace(namespace) and not kept:
            return
        if not kept and namespaces.foreign(namespace):
            return
        try:
            self._act(item, HANDLERS[type(item)].remove)
        except KernelError as error:
            if not _is_absence(error):
                raise

    def _act(self, item: Item, action: Action) -> None:
        with _translated(f"the kernel refused {item}"):
            action(self, item)

    # -- one for each kind ---------------------------------------------------------------------------------------

    def _ensure_namespace(self, item: Namespace) -> None:
        if namespaces.is_namespace(item.namespace):
            why = namespaces.foreign(item.namespace, item.tag)
            if why:
                raise ConflictError(why)
            return
        namespaces.create(item.namespace, item.tag)

    def _remove_namespace(self, item: Namespace) -> None:
        if namespaces.is_namespace(item.namespace) and namespaces.owner(item.namespace) != item.tag:
            return
        self._silence(item)
        self._close(item.namespace)
        namespaces.remove(item.namespace, item.tag)
        gate_texts.forget(item.namespace)

    def _silence(self, item: Namespace) -> None:
        """Have a router that is about to go forward nothing more.

        The kernel takes the rules of a dying namespace away before its links (net/core/net_namespace.c: cleanup_net),
        and would meanwhile forward what they dropped.
        """
        if not item.tag.endswith("/router") or not namespaces.is_namespace(item.namespace):
            return
        if namespaces.foreign(item.namespace, item.tag):
            return
        with contextlib.suppress(OSError, KernelError), self._rtnl(item.namespace).inside():
            settings.forward_nothing()

    def _ensure_setting(self, item: Setting | LinkSetting) -> None:
        with self._rtnl(item.namespace).inside():
            settings.ensure(item)

    def _restore_setting(self, item: LinkSetting) -> None:
        with self._rtnl(item.namespace).inside():
            settings.restore(item)

    def _ensure_forwarding(self, item: Forwarding) -> None:
        """Turn forwarding on for a link; KernelError if other links stopped since the host was looked at.

        The guard was made then, and does not know that packets from this link to those would pass by our setting alone.
        """
        stopped = [
            name
            for name, link in self._rtnl(None).links().items()
            if link.index in self._forwarded and link.index != item.index and not link.forwards
        ]
        if stopped:
            raise KernelError(
                f"forwarding was turned off for {', '.join(sorted(stopped))} of the host at this moment;"
                " nothing was opened, try again"
            )
        settings.forward(item.index)

    def _restore_forwarding(self, item: Forwarding) -> None:
        settings.forward_no_more(item.index)
        self._forwarded.discard(item.index)

    def _ensure_ruleset(self, item: Ruleset) -> None:
        nft = self._nft(item.namespace)
        if self._observe_ruleset(item) == RIGHT:
            return
        before, done = self._stamp(item.namespace), nft.transactions
        self._load_ruleset(nft, item, before)
        after = self._stamp(item.namespace)
        # Nobody else changed anything in between.
        if before and after == (before.cookie, before.transactions + nft.transactions - done):
            self._notes.learn(after, item)

    def _observe_ruleset(self, item: Ruleset) -> Condition:
        stamp = self._stamp(item.namespace)
        if self._notes.holds(stamp, item):
            return RIGHT
        condition = tables.observe(item, self._nft(item.namespace), self._reference)
        if condition == RIGHT and item.content is not None:
            self._notes.learn(stamp, item)
        return condition

    def _stamp(self, namespace: str | None) -> verified.Stamp | None:
        rtnl, nft = self._handles(namespace)
        if nft is not None:
            return verified.stamp(nft.channel)
        with rtnl.inside():
            return verified.stamp()

    @_translated("cannot read the kernel's network state")
    def untouched(self, rulesets: Iterable[Ruleset]) -> set[tuple[str, ...]]:
        return {
            item.key
            for item in rulesets
            if (item.namespace is None or self._is_there(item.namespace))
            and self._notes.holds(self._stamp(item.namespace), item)
        }

    def _load_ruleset(self, nft: tables.Nft, item: Ruleset, stamp: verified.Stamp | None) -> None:
        from vpcctl.kernel import conntrack

        router, former = item.namespace, item.former
        if router is None:
            tables.load(nft, item, conntrack.settle, lambda gate, fingerprint: None)
            return
        if former is not None and stamp is not None and not self._notes.holds(stamp, former):
            # Somebody changed something in between; a whole load repairs that.
            item = dataclasses.replace(item, former=None)
        tables.load(nft, item, conntrack.settle, partial(gate_texts.text, router))
        gate_texts.keep(router, item.compiled)

    def _remove_ruleset(self, item: Ruleset) -> None:
        tables.unload(self._nft(item.namespace), item)
        if item.namespace is not None:
            gate_texts.forget(item.namespace)

    def _remove_bridge(self, item: Bridge) -> None:
        rtnl = self._rtnl(item.namespace)
        if rtnl.is_ours(item):
            rtnl.remove_link(item.name)

    def _ensure_veth(self, item: Veth) -> None:
        """Make the pair; where its far end's name is taken, make that free and try again.

        One end of a pair may be left after the namespace of the other end was deleted.  Root inside an instance
        may have given the name to another link, and may go on to do so for as long as we try.
        """
        rtnl, far = self._rtnl(item.namespace), item.peer_namespace
        if far is None:
            contended(lambda: rtnl.ensure_veth(item), lambda attempt: self._remove_far_end(item), 2)
        else:
            contended(
                lambda: rtnl.ensure_veth(item),
                lambda attempt: self._rtnl(far).evict(item.peer_name, attempt >= GENTLE_ATTEMPTS),
                ATTEMPTS,
            )
            if far in self._open:
                self._rtnl(far).forget(item.peer_name)

    def _remove_veth(self, item: Veth) -> None:
        """Remove the pair: by one end, unless a process keeps that in a namespace that has no name any more."""
        if not self._remove_near_end(item) or item.peer_namespace is None:
            self._remove_far_end(item)
        for namespace in {item.namespace, item.peer_namespace} & self._open.keys():
            # Where its making was cut short, the peer has not left the near end's namespace.
            for name in (item.name, item.peer_name):
                self._rtnl(namespace).forget(name)

    def _remove_near_end(self, item: Veth) -> bool:
        """Remove the pair by its near end; False if that is not there, or not ours."""
        if not namespaces.is_namespace(item.namespace) or namespaces.foreign(item.namespace):
            return False
        rtnl = self._rtnl(item.namespace)
        rtnl.forget(item.name)
        return rtnl.is_ours(item) and self._removed(rtnl, item.name)

    def _remove_far_end(self, item: Veth) -> bool:
        """Remove the pair by its far end; False if that is not there, or the host's own."""
        namespace, name = item.peer_namespace, item.peer_name
        if namespace is not None and (not namespaces.is_namespace(namespace) or namespaces.foreign(namespace)):
            return False
        rtnl = self._rtnl(namespace)
        rtnl.forget(name)
        found = rtnl.link(name)
        if found is None:
            return False
        ours = found.alias == item.tag if namespace is None else found.mac == item.peer_mac
        return ours and self._removed(rtnl, name)

    @staticmethod
    def _removed(rtnl: Rtnl, name: str) -> bool:
        """Remove a link, which may go by itself meanwhile."""
        try:
            rtnl.remove_link(name)
        except NetlinkError as error:
            if error.errno not in ABSENCE:
                raise
        return True

    def loaded(self, namespace: str) -> set[tuple[str, int]]:
        return tables.loaded(self._nft(namespace)) if self._is_there(namespace) else set()

    def gates(self, ruleset: Ruleset) -> Mapping[str, str]:
        return {} if ruleset.namespace is None else gate_texts.fingerprints(ruleset.namespace, ruleset.fingerprint)

    @staticmethod
    @_translated("cannot read the kernel's network state")
    def _is_there(namespace: str) -> bool:
        """Is there a namespace of that name, and is it ours?"""
        return namespaces.is_namespace(namespace) and not namespaces.foreign(namespace)

    # -- connection tracking -------------------------------------------------------------------------------------

    def settled(self, namespaces: Iterable[str | None]) -> set[str | None]:
        busy = {namespace for namespace in namespaces if self._tracks(namespace)}
        if busy:
            from vpcctl.kernel import conntrack

            conntrack.settle()
        return busy

    def _tracks(self, namespace: str | None) -> bool:
        """Has connection tracking any entry there, those of packets on their way included?

        Asked by a setting, where there is one: it is quick, and needs no socket, whose closing takes 10 ms.
        """
        if namespace is not None and not self._is_there(namespace):
            return False
        with _translated("cannot read connection tracking"), self._rtnl(namespace).inside():
            count = settings.read(TRACKED)
        if count is not None:
            return count != "0"
        with self._tracking(namespace) as tracking:
            return tracking is not None and tracking.count() > 0

    def flows(self, namespace: str | None, selection: Selection | None = None) -> Iterator[Tracked]:
        if not self._tracks(namespace):
            return
        with self._tracking(namespace) as tracking:
            if tracking is not None:
                yield from tracking.flows(selection)

    def counted(self, namespace: str, selection: Selection | None = None) -> Iterator[Counted]:
        if not self._tracks(namespace):
            return
        with self._tracking(namespace) as tracking:
            if tracking is not None:
                yield from tracking.counted(selection)

    def forget(self, namespace: str | None, keys: Iterable[Key]) -> None:
        with self._tracking(namespace) as tracking:
            if tracking is not None:
                tracking.forget(keys)

    def tally(self, addresses: Collection[int]) -> Mapping[int, tuple[int, int]]:
        with self._tracking(None) as tracking:
            return tracking.tally(addresses) if tracking is not None else {}

    def refused(self, namespace: str) -> int:
        with self._tracking(namespace) as tracking:
            return 0 if tracking is None else tracking.refused()

    def counters(self) -> Mapping[str, int]:
        return tables.counters(self._nft(None))

    @staticmethod
    @contextlib.contextmanager
    def _tracking(namespace: str | None) -> Iterator[Tracking | None]:
        """The connection tracking of a namespace; None for one that is gone or not ours."""
        from vpcctl.kernel import conntrack

        if namespace is not None and not LinuxKernel._is_there(namespace):
            yield None
            return
        with contextlib.closing(conntrack.Tracking(namespace)) as tracking:
            yield tracking

    # -- sockets -------------------------------------------------------------------------------------------------

    def ruleset_listing(self, namespace: str | None, families: tuple[str, ...]) -> str:
        """Our tables in `namespace` as ``nft list`` prints them."""
        return tables.listing(self._nft(namespace), namespace, families)

    def ruleset_objects(self, namespace: str) -> list[dict[str, Any]]:
        """Our inet table in `namespace` as JSON objects."""
        return tables.elements(self._nft(namespace), namespace)

    def _rtnl(self, namespace: str | None) -> Rtnl:
        return self._handles(namespace)[0]

    def _nft(self, namespace: str | None) -> tables.Context:
        rtnl, nft = self._handles(namespace)
        if nft is None:
            with rtnl.inside():
                nft = tables.context(None)
            self._open[namespace] = (rtnl, nft)
        return nft

    def _reference(self) -> tables.Nft:
        """Where a ruleset can be loaded to see how the kernel lists it."""
        if self._scratch is None:
            self._scratch = tables.scratch()
        return self._scratch

    def _handles(self, namespace: str | None) -> tuple[Rtnl, tables.Context | None]:
        """The sockets of a namespace.  Those used longest ago are closed first, so none that is in use."""
        if namespace in self._open:
            self._open[namespace] = self._open.pop(namespace)
        else:
            while len(self._open) >= OPEN_NAMESPACES:
                self._close(next(iter(self._open)))
            self._open[namespace] = (Rtnl(namespace), None)
        return self._open[namespace]

    def _close(self, namespace: str | None) -> None:
        if namespace in self._open:
            self._open.pop(namespace)[0].close()


def _is_absence(error: KernelError) -> bool:
    cause = error.__cause__
    return (isinstance(cause, NetlinkError) and cause.errno in ABSENCE) or isinstance(error, GoneError)


def require_privilege() -> None:
    """Raise PrivilegeError unless this process may look at and change the network (capabilities(7))."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    if not (effective >> CAP_NET_ADMIN) & (effective >> CAP_SYS_ADMIN) & 1:
        raise PrivilegeError(
            "to look at namespaces and firewalls, or to change them, needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN);"
            " use sudo, or play without root in `vpcctl lab`"
        )


# Each takes items of its own kind.
Action = Callable[[LinuxKernel, Any], None]


def _with_rtnl(name: str) -> Action:
    """The method `name` of the item's namespace's rtnetlink."""
    return lambda kernel, item: getattr(kernel._rtnl(item.namespace), name)(item)


def _nothing(kernel: LinuxKernel, item: Item) -> None:
    """What goes with its namespace or link, and by itself needs nothing."""


def _surveys(kernel: LinuxKernel, survey: Survey, item: Item) -> Condition:
    return survey.observe(item)


@dataclass(frozen=True, slots=True)
class Handler:
    """How objects of one kind are made, removed and compared; `inside` means compared from within the namespace."""

    ensure: Action
    remove: Action
    observe: Callable[[LinuxKernel, Survey, Any], Condition] = _surveys
    inside: bool = False


def _by_rtnl(ensure: str, remove: str | None) -> Handler:
    """The methods of those names of `Rtnl`; None for what goes with its link and needs no removal."""
    return Handler(_with_rtnl(ensure), _nothing if remove is None else _with_rtnl(remove))


HANDLERS: dict[type[Item], Handler] = {
    Namespace: Handler(
        LinuxKernel._ensure_namespace,
        LinuxKernel._remove_namespace,
        lambda kernel, survey, item: kernel._observe_tag(item),
    ),
    Setting: Handler(LinuxKernel._ensure_setting, _nothing, lambda kernel, survey, item: settings.observe(item), True),
    Ruleset: Handler(
        LinuxKernel._ensure_ruleset,
        LinuxKernel._remove_ruleset,
        lambda kernel, survey, item: kernel._observe_ruleset(item),
    ),
    Bridge: Handler(_with_rtnl("ensure_bridge"), LinuxKernel._remove_bridge),
    ChecksumLink: Handler(
        lambda kernel, item: checksums.ensure_link(kernel._rtnl(item.namespace), item),
        lambda kernel, item: checksums.remove_link(kernel._rtnl(item.namespace), item),
        lambda kernel, survey, item: checksums.observe_link(kernel._rtnl(item.namespace), item),
    ),
    Veth: Handler(LinuxKernel._ensure_veth, LinuxKernel._remove_veth, LinuxKernel._observe_veth),
    Mtu: _by_rtnl("ensure_mtu", None),
    LinkSetting: Handler(
        LinuxKernel._ensure_setting,
        LinuxKernel._restore_setting,
        lambda kernel, survey, item: settings.observe(item),
        True,
    ),
    Forwarding: Handler(
        LinuxKernel._ensure_forwarding,
        LinuxKernel._restore_forwarding,
        lambda kernel, survey, item: settings.observe_forwarding(item.index),
        True,
    ),
    ProxyDelay: _by_rtnl("ensure_proxy_delay", None),
    Detour: Handler(
        lambda kernel, item: checksums.ensure_detour(kernel._rtnl(item.namespace), item),
        lambda kernel, item: checksums.remove_detour(kernel._rtnl(item.namespace), item),
        lambda kernel, survey, item: checksums.observe_detour(kernel._rtnl(item.namespace), item),
    ),
    Port: _by_rtnl("ensure_port", "remove_port"),
    FdbEntry: _by_rtnl("ensure_fdb", "remove_fdb"),
    Neighbour: _by_rtnl("ensure_neighbour", "remove_neighbour"),
    Address: _by_rtnl("ensure_address", "remove_address"),
    LinkUp: _by_rtnl("ensure_up", "remove_up"),
    Route: _by_rtnl("ensure_route", "remove_route"),
    Open: _by_rtnl("ensure_up", "remove_up"),
}
