"""The network in which the tests attack: three VPCs in a row of peerings, and one with a prefix that is taken already.

shop 10.0.0.0/16          blue 10.1.0.0/16       red 10.2.0.0/16         twin 10.0.0.0/16
  web (public)  ═════════   app (private) ═══════  pub (public)            web (public)
    web, web-2                                       udp and tcp 8080 of
  db (private)                                       the host is its 80
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.lab import wire
from tests.lab.wire import ICMP, IP, TCP, UDP, Probe, Tap, Wire, ethernet, ipv4
from vpcctl import names
from vpcctl.lab import HOST, INTERNET, NEIGHBOUR, Lab

BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-instance --vpc shop --subnet web --name web-2",
    "create-subnet --vpc shop --name db --cidr 10.0.3.0/24 --type private",
    "create-vpc --name blue --cidr 10.1.0.0/16",
    "create-subnet --vpc blue --name app --cidr 10.1.1.0/24 --type private",
    "create-vpc --name red --cidr 10.2.0.0/16",
    "create-subnet --vpc red --name pub --cidr 10.2.1.0/24 --type public",
    "create-vpc --name twin --cidr 10.0.0.0/16",
    "create-subnet --vpc twin --name web --cidr 10.0.1.0/24 --type public",
    "create-peering --vpc1 shop --vpc2 blue",
    "create-peering --vpc1 blue --vpc2 red",
    "publish-port --vpc red --instance pub --protocol udp --port 8080 --target-port 80",
    "publish-port --vpc red --instance pub --protocol tcp --port 8080 --target-port 80",
)
# Names of stations: the instances by namespace, and the machines on the LAN.
WEB, WEB_2, DB, APP, PUB, TWIN = "shop-web", "shop-web-2", "shop-db", "blue-app", "red-pub", "twin-web"
FAR, NEAR = "internet", "neighbour"
# (VPC, subnet, address)
INSTANCES = {
    WEB: ("shop", "web", "10.0.1.2"),
    WEB_2: ("shop", "web", "10.0.1.3"),
    DB: ("shop", "db", "10.0.3.2"),
    APP: ("blue", "app", "10.1.1.2"),
    PUB: ("red", "pub", "10.2.1.2"),
    TWIN: ("twin", "web", "10.0.1.2"),
}
PUBLISHED, TARGET = 8080, 80
# The uplink's addresses of the four VPCs in their order: (the host's end, the router's).
UPLINKS = {
    vpc: (f"100.64.0.{2 * number}", f"100.64.0.{2 * number + 1}")
    for number, vpc in enumerate(("shop", "blue", "red", "twin"))
}


@dataclass(frozen=True, slots=True)
class Station:
    """Somebody who sends: `gateway` is the MAC address of its next hop, `router` the first address of its subnet."""

    tap: Tap
    mac: str
    address: str
    gateway: str
    router: str = ""

    def frame(self, packet: bytes, *, source: str | None = None, to: str | None = None) -> bytes:
        """An IPv4 frame to the next hop, or `to` another MAC address; `source` is a MAC address."""
        return ethernet(to or self.gateway, source or self.mac, IP, packet)

    def packet(self, destination: str, protocol: int, payload: bytes, source: str | None = None, **more: Any) -> bytes:
        """A frame with an IPv4 packet; `source` is an address, `more` goes to `wire.ipv4`."""
        return self.frame(ipv4(source or self.address, destination, protocol, payload, **more))

    def udp(self, destination: str, port: int, source_port: int = 1111, **more: Any) -> Probe:
        """A datagram as a probe; `more` goes to `packet`."""
        return self.tap, lambda one: self.packet(destination, UDP, wire.udp(source_port, port, one), **more)

    def tcp(self, destination: str, port: int, flags: int = wire.SYN, source_port: int = 1111, **more: Any) -> Probe:
        """A segment as a probe; `more` goes to `wire.tcp`."""
        ends = (self.address, destination)
        return self.tap, lambda one: self.packet(
            destination, TCP, wire.tcp(ends, source_port, port, flags, one, **more)
        )

    def echo(self, destination: str, identifier: int = 1) -> Probe:
        """An echo request as a probe."""
        return self.tap, lambda one: self.packet(destination, ICMP, wire.echo(identifier, one))

    def raw(self, make: Callable[[bytes], Any]) -> Probe:
        """Whatever `make` makes of a word."""
        return self.tap, make


# What comes to an instance is heard by its tap and by nothing else: no kernel resets, answers or errors join in.
DEAF = """
table netdev deaf {
    chain ingress { type filter hook ingress device eth0 priority 0; policy drop; }
}
"""


class Tenants(Mapping[str, Station]):
    """The network above in a lab, with a tap on each instance's link and on each machine of the LAN."""

    def __init__(self, lab: Lab):
        self.lab, self.wire = lab, Wire(lab)
        for command in BUILD:
            self.wire.vpcctl(*command.split())
        for namespace in INSTANCES:
            lab.run(["nft", "-f", "-"], netns=namespace, input=DEAF)
        self._stations = {name: self.instance(name, *place) for name, place in INSTANCES.items()}
        gateway = self.mac(None, "eth0")
        for name, address in ((FAR, INTERNET), (NEAR, NEIGHBOUR)):
            self._stations[name] = Station(self.wire.tap(name), self.mac(name, "eth0"), str(address), gateway)
        self._stations["host"] = Station(self.wire.tap(None), gateway, str(HOST), self._stations[FAR].mac)

    def __getitem__(self, name: str) -> Station:
        return self._stations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stations)

    def __len__(self) -> int:
        return len(self._stations)

    def instance(self, namespace: str, vpc: str, subnet: str, address: str) -> Station:
        """An instance as a station."""
        gateway = self.mac(names.router_namespace(vpc), names.bridge(subnet))
        router = f"{address.rpartition('.')[0]}.1"
        return Station(self.wire.tap(namespace), self.mac(namespace, "eth0"), address, gateway, router)

    def mac(self, netns: str | None, link: str) -> str:
        return json.loads(self.lab.run(["ip", "-json", "link", "show", link], netns=netns).stdout)[0]["address"]

    def neighbours(self, netns: str | None) -> list[str]:
        """The neighbour table of a namespace, each entry as ip-neighbour(8) tells it, sorted."""
        return sorted(self.lab.run(["ip", "neighbour", "show"], netns=netns).stdout.splitlines())

    def apply(self, vpc: str, subnet: str, **policy: Any) -> None:
        """Give a subnet a policy."""
        self.wire.vpcctl("apply-policy", "-", document={"vpc": vpc, "subnet": subnet, **policy})

    @contextlib.contextmanager
    def policy(self, vpc: str, subnet: str, **policy: Any) -> Iterator[None]:
        """Give a subnet a policy for a while."""
        self.apply(vpc, subnet, **policy)
        try:
            yield
        finally:
            self.wire.vpcctl("clear-policy", "--vpc", vpc, "--subnet", subnet)
