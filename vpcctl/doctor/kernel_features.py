"""Test the features of the kernel in a temporary network namespace.

A child process leaves the host's network and mounts (with a user namespace where it lacks privilege), tries every
feature that a VPC is built from, one by one so that the missing one has a name, and then makes a whole sample world
and reads it back.  The test never touches the host's network, and all its objects end with the child.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vpcctl.analysis.tracking import key
from vpcctl.doctor.apart import apart
from vpcctl.doctor.feature_batches import BATCHES, Batch
from vpcctl.doctor.finding import Finding
from vpcctl.doctor.network_state import privileged
from vpcctl.errors import KernelError, VpcctlError
from vpcctl.kernel import namespaces, sandbox, settings
from vpcctl.resources.kinds import PORT_FLAGS
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.kernel.links import Rtnl

SUBJECT = "kernel"
BRIDGE, PORT, FAR_END = "br-try", "in-try", "far-try"
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03")
WHY_TABLES = "Without it vpcctl cannot load the ruleset of a VPC, and does not create the VPC."
WHY_LINKS = "Without it vpcctl cannot create a subnet whose instances cannot spoof addresses or bypass the firewall."

# A world with something of everything that a ruleset is made of.
SAMPLE: dict[str, Any] = {
    "vpcs": [
        {
            "name": "sample",
            "cidr": "10.0.0.0/16",
            "publish": [{"protocol": "tcp", "port": 8080, "instance": "web", "target_port": 80}],
            "subnets": [
                {
                    "name": "web",
                    "cidr": "10.0.1.0/24",
                    "type": "public",
                    "instances": [{"name": "web"}, {"name": "web-2"}],
                    "policy": {
                        "ingress": [
                            {"action": "reject", "protocol": "tcp", "port": 25},
                            {"action": "allow", "protocol": "tcp", "port": [80, "8000-8080"], "log": True},
                            {"action": "allow", "protocol": "icmp", "icmp_type": "echo-request", "limit": "9/second"},
                            {"action": "deny", "protocol": "udp", "source": ["203.0.113.0/24", "vpc:other"]},
                            {"action": "allow", "protocol": "udp", "port": "*", "source": "internet"},
                        ]
                    },
                },
                {
                    "name": "db",
                    "cidr": "10.0.3.0/24",
                    "type": "private",
                    "nat_gateway": True,
                    "policy": {"egress": [{"action": "allow", "protocol": "any", "destination": "subnet:web"}]},
                },
            ],
        },
        {"name": "other", "cidr": "10.1.0.0/16", "subnets": [{"name": "a", "cidr": "10.1.1.0/24", "type": "private"}]},
    ],
    "peerings": [["sample", "other"]],
}


@dataclass(frozen=True, slots=True)
class Feature:
    """Something to try in the scratch network: `attempt` raises where the kernel cannot.

    `option` is the kernel's configuration option, `module` what modprobe(8) loads for it, `since` the first version
    of Linux that has it.
    """

    name: str
    why: str
    attempt: Callable[[], None]
    option: str = ""
    module: str = ""
    since: str = ""

    def missing(self, reason: str) -> Finding:
        """The finding for a kernel without it."""
        needs = [f"a kernel with {self.option}"] if self.option else []
        needs += [f"Linux {self.since} or newer"] if self.since else []
        load = (f"modprobe {self.module}",) if self.module else ()
        words = f"It requires {' and '.join(needs)}" if needs else ""
        if load:
            words += "; if it is a module, load it:"
        return Finding("fatal", SUBJECT, f"{self.name} does not work ({reason})", self.why, words, load)


def findings(features: Sequence[Feature] | None = None) -> list[Finding]:
    """What the kernel lacks, or one `ok`; None are the features that a VPC needs, and the sample world."""
    try:
        lacking = apart(lambda: _in_scratch(features))
    except KernelError as error:
        return [_not_tried(str(error))]
    missing = [Finding(**(one | {"commands": tuple(one["commands"])})) for one in lacking]
    version = os.uname().release
    good = Finding("ok", SUBJECT, f"Linux {version} has every feature that a VPC needs, as tested in a scratch network")
    return missing if any(one.severity == "fatal" for one in missing) else [good, *missing]


def _not_tried(reason: str) -> Finding:
    return Finding(
        "warning",
        SUBJECT,
        f"cannot test the features of the kernel ({reason})",
        "A missing feature then causes an error only when you create the first VPC.",
        "Run doctor as root.",
    )


def _in_scratch(features: Sequence[Feature] | None) -> list[dict[str, object]]:
    """In the child: leave the host, try, and return what is missing."""
    _leave()
    missing = [feature.missing(reason) for feature, reason in _tried(needed() if features is None else features)]
    if features is None and not missing:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        missing = list(_sample())
    return [one.to_json() for one in missing]


def _leave() -> None:
    """Leave the host's network and mounts for ones of this process alone."""
    try:
        if not privileged():
            sandbox._enter_user_namespace()
        namespaces.unshare(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWNET)
    except OSError as error:
        raise KernelError("cannot create the namespaces for the test", str(error)) from error
    sandbox.mount_own(["/run/netns"])


def _tried(features: Sequence[Feature]) -> Iterator[tuple[Feature, str]]:
    for feature in features:
        try:
            feature.attempt()
        except (VpcctlError, OSError) as error:
            yield feature, str(error)


# --- One by one -------------------------------------------------------------------------------------------------------


def needed() -> list[Feature]:
    """Everything that a VPC needs, in the order of dependency."""
    return [*_link_features(), *_setting_features(), *map(table_feature, BATCHES), _TRACKING]


def _link_features() -> list[Feature]:
    since = {"isolated": "4.18", "locked": "5.18"}
    feature = partial(Feature, why=WHY_LINKS)
    return [
        feature("bridges", attempt=_make_bridge, option="CONFIG_BRIDGE", module="bridge"),
        feature("veth pairs", attempt=_make_veth, option="CONFIG_VETH", module="veth"),
        feature("a veth as port of a bridge", attempt=_enslave, option="CONFIG_BRIDGE", module="bridge"),
        *(
            feature(
                f"bridge ports with {flag} {'on' if value else 'off'}",
                attempt=partial(_set_flag, flag, value),
                since=since.get(flag, ""),
            )
            for flag, value in PORT_FLAGS.items()
        ),
        feature("static entries of a bridge's forwarding database", attempt=_add_entry),
        feature("a proxy delay of 0, set by RTM_SETNEIGHTBL", attempt=_set_proxy_delay),
        feature("alternative names of links", attempt=_add_altname, since="5.5"),
    ]


def _setting_features() -> list[Feature]:
    from vpcctl.resources.topology import ROUTER_SETTINGS

    why = "Every router namespace needs it. If vpcctl cannot set it, it does not create the VPC."
    wanted = [(path, value) for path, value, optional in ROUTER_SETTINGS if not optional]
    wanted += [(f"net/ipv4/conf/{BRIDGE}/{name}", value) for name, value in (("proxy_arp_pvlan", "1"),)]
    return [Feature(f"the setting {path}", why, partial(_set, path, value)) for path, value in wanted]


def table_feature(batch: Batch) -> Feature:
    """A feature of nftables, tried by loading `batch`."""
    return Feature(batch.name, WHY_TABLES, partial(_load, batch.text), batch.option, batch.module, batch.since)


def _read_tracking() -> None:
    from vpcctl.kernel.conntrack import Tracking

    with contextlib.closing(Tracking(None)) as tracking:
        tracking.count()
        tracking.forget(map(key, tracking.flows()))


_TRACKING = Feature(
    "reading and forgetting tracked flows",
    "vpcctl cannot end the flows that a change makes invalid, so every change of a VPC fails.",
    _read_tracking,
    "CONFIG_NF_CT_NETLINK",
    "nf_conntrack_netlink",
)


def _load(batch: str) -> None:
    from vpcctl.kernel import tables

    nft = tables.context(None)
    status, _, complaint = nft.cmd(batch)
    for family in ("inet", "arp", "bridge"):
        nft.cmd(f"delete table {family} try")
    if status:
        lines = [line.strip() for line in complaint.strip().splitlines() if line.strip()]
        raise KernelError(lines[0].partition("Error: ")[2] or lines[0] if lines else "nft refused it")


def _set(path: str, value: str) -> None:
    file = settings.ROOT / path
    if settings.read(file) != value:
        file.write_text(value)


def _make_bridge() -> None:
    from vpcctl.kernel import rtnetlink as rt

    _with_rtnl(lambda rtnl: rtnl.add_link(rt.name_and_mac(BRIDGE, MACS[0]), rt.bridge()))


def _make_veth() -> None:
    from vpcctl.kernel import rtnetlink as rt

    _with_rtnl(lambda rtnl: rtnl.add_link(rt.name_and_mac(PORT, MACS[1]), rt.veth(FAR_END, MACS[2])))


def _enslave() -> None:
    from vpcctl.kernel import rtnetlink as rt

    _with_rtnl(lambda rtnl: rtnl.set_link(rtnl.index(PORT), rt.master(rtnl.index(BRIDGE))))


def _set_flag(flag: str, value: int) -> None:
    from vpcctl.kernel import rtnetlink as rt

    def attempt(rtnl: Rtnl) -> None:
        rtnl.set_link(rtnl.index(PORT), rt.bridge_port({flag: value}))
        # An older kernel accepts the request and ignores flags that it does not know.
        if rtnl.present(PORT).port.get(flag) != value:
            raise KernelError("the kernel ignores it")

    _with_rtnl(attempt)


def _add_entry() -> None:
    from vpcctl.resources.kinds import FdbEntry

    _with_rtnl(lambda rtnl: rtnl.ensure_fdb(FdbEntry("", PORT, MACS[2])))


def _set_proxy_delay() -> None:
    from vpcctl.resources.kinds import ProxyDelay

    _with_rtnl(lambda rtnl: rtnl.ensure_proxy_delay(ProxyDelay("", BRIDGE)))


def _add_altname() -> None:
    _with_rtnl(lambda rtnl: rtnl.add_altname(rtnl.index(BRIDGE), "vpcctl-alternative-name"))


def _with_rtnl(action: Callable[[Rtnl], None]) -> None:
    from vpcctl.kernel.links import Rtnl

    with contextlib.closing(Rtnl(None)) as rtnl:
        action(rtnl)


# --- All at once ------------------------------------------------------------------------------------------------------


def _sample() -> Iterator[Finding]:
    """Make the sample world here, as a VPC is made, and compare it with what it should be."""
    from vpcctl.documents.environment import read_environment
    from vpcctl.kernel.linux import LinuxKernel
    from vpcctl.resources import plan, topology
    from vpcctl.resources.protocol import RIGHT

    world = read_environment(SAMPLE, "sample", lambda path: (None, path))
    items = [item for scope in topology.snapshot(world, "doctor", {}).values() for item in scope]
    why = "Each feature works by itself, but a complete VPC does not."
    kernel = LinuxKernel()
    try:
        for step in plan.diff((), items).steps:
            kernel.ensure(step.item)
        for item, condition in kernel.observe(items).items():
            if condition != RIGHT:
                detail = f": {condition.detail}" if condition.detail else ""
                words = f"in a sample VPC {item} is {condition.state.value}{detail}"
                yield Finding("fatal", SUBJECT, words, why)
    except VpcctlError as error:
        yield Finding("fatal", SUBJECT, f"cannot create a sample VPC: {error}", why)
    finally:
        kernel.close()
