"""A life of a machine, change by change: each step is what a command does to a world."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable

from vpcctl.documents import binding
from vpcctl.documents.policies import read_policies
from vpcctl.model import operations
from vpcctl.model.network import Publication, World
from vpcctl.model.policy import TCP

Step = Callable[[World], World]

WEB_POLICY = {
    "subnet": "web",
    "ingress": [
        {"action": "allow", "protocol": "tcp", "port": 80, "log": True},
        {"action": "allow", "protocol": "icmp", "icmp_type": "echo-request", "limit": "10/second"},
        {"action": "reject", "source": "subnet:db"},
    ],
}
WEB_POLICY_TIGHTER = {"subnet": "web", "ingress": [{"action": "allow", "protocol": "tcp", "port": 443}], "egress": []}


def _network(text: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(text)


def policy(document: dict, vpc: str = "one") -> Step:
    """Attach the policy of `document`."""
    return lambda world: binding.attach(world, read_policies(document, "web.json"), vpc)[0]


def subnet(vpc: str, name: str, prefix: str, public: bool = True) -> Step:
    return lambda world: operations.create_subnet(world, vpc, name, _network(prefix), public, True, 0)


def harden(vpc: str, hardened: bool = True) -> Step:
    return lambda world: world.with_vpc(dataclasses.replace(world.vpc(vpc), hardened=hardened))


def nothing(world: World) -> World:
    """A machine without anything of ours."""
    return World()


STORY: tuple[tuple[str, Step], ...] = (
    ("create VPC one", lambda world: operations.create_vpc(world, "one", _network("10.0.0.0/26"), mtu=1500)),
    ("create its subnet web", subnet("one", "web", "10.0.0.0/28")),
    ("create its private subnet db", subnet("one", "db", "10.0.0.16/28", public=False)),
    ("give db a NAT gateway", lambda world: operations.set_nat_gateway(world, "one", "db", True)),
    ("publish a port", lambda world: operations.publish_port(world, "one", Publication(TCP, 8080, "web", 80))),
    ("apply a policy", policy(WEB_POLICY)),
    (
        "create VPC two",
        lambda world: operations.create_vpc(world, "two", _network("10.0.0.64/26"), hardened=True, mtu=1500),
    ),
    ("create its subnet api", subnet("two", "api", "10.0.0.64/28")),
    ("peer them", lambda world: operations.create_peering(world, "one", "two")),
    ("tighten the policy", policy(WEB_POLICY_TIGHTER)),
    ("harden VPC one", harden("one")),
    ("clear the policy", lambda world: operations.clear_policy(world, "one", "web")),
    ("take the published port back", lambda world: operations.unpublish_port(world, "one", TCP, 8080)),
    ("VPC one is no longer hardened", harden("one", False)),
    ("delete db", lambda world: operations.delete_subnet(world, "one", "db", False)),
    ("separate them", lambda world: operations.delete_peering(world, "one", "two")),
    ("delete VPC one", lambda world: operations.delete_vpc(world, "one", True)),
    ("delete everything", nothing),
)
# Changes of many parts at once, as a whole environment brings them.
LEAPS: tuple[tuple[str, str], ...] = (
    ("create VPC one", "peer them"),
    ("peer them", "delete VPC one"),
    ("tighten the policy", "create its subnet web"),
    ("peer them", "delete everything"),
)


def told(upto: str) -> World:
    """The world after the step `upto`."""
    world = World()
    for name, step in STORY:
        world = step(world)
        if name == upto:
            return world
    raise KeyError(upto)
