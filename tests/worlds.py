"""Random worlds, policies and flows, in a universe so small that almost everything overlaps.

The strategies are biased to edges: /0 and /32, ports 1 and 65535, ranges that touch, equal rules, empty lists.  VPCs
``alpha`` and ``beta`` may be peered; ``loner`` has the prefix of both and can be peered with neither.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import random

from hypothesis import strategies as st

from vpcctl import names
from vpcctl.model.host import Host
from vpcctl.model.network import Instance, Peering, Publication, Subnet, Vpc, World, placed, uplink_pair
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import (
    HIGHEST_PORT,
    ICMP,
    ICMP_PROTOCOLS,
    ICMPV6,
    PORT_PROTOCOLS,
    SCTP,
    TCP,
    UDP,
    Action,
    Address,
    Direction,
    Endpoint,
    Limit,
    Network,
    Origin,
    Policy,
    Rule,
)

network = ipaddress.ip_network
address = ipaddress.ip_address

GRE = 47
PREFIXES = {"alpha": "10.0.0.0/26", "beta": "10.0.0.64/26", "loner": "10.0.0.0/25"}
PREFIXES6 = {"alpha": "2001:db8:0:a::/64", "beta": "2001:db8:0:b::/64", "loner": "2001:db8:0:a::/64"}
SUBNETS = {
    "alpha": {"web": "10.0.0.0/28", "db": "10.0.0.16/29", "ops": "10.0.0.24/30", "late": "10.0.0.32/27"},
    "beta": {"web": "10.0.0.64/30", "api": "10.0.0.72/29"},
    "loner": {"web": "10.0.0.0/28"},
}
SUBNETS6 = {"web": 0x100, "db": 0x200, "ops": 0x300, "late": 0x400, "api": 0x500}
NETWORKS = tuple(
    map(
        network,
        "0.0.0.0/0 0.0.0.0/1 128.0.0.0/1 0.0.0.0/32 255.255.255.255/32 10.0.0.0/8 10.0.0.0/25 10.0.0.0/26 10.0.0.0/27"
        " 10.0.0.0/28 10.0.0.0/29 10.0.0.8/29 10.0.0.2/31 10.0.0.2/32 10.0.0.3/32 10.0.0.16/29 10.0.0.16/30"
        " 10.0.0.18/32 10.0.0.24/30 10.0.0.64/26 10.0.0.66/32 10.0.0.72/29 203.0.113.0/24 203.0.113.0/25"
        " 203.0.113.128/25 203.0.113.7/32 ::/0 2001:db8::/32 2001:db8:0:a::/64 2001:db8:0:a::102/128".split(),
    )
)
OUTSIDE = tuple(map(address, "203.0.113.0 203.0.113.7 203.0.113.127 203.0.113.128 203.0.113.255 10.0.0.129".split()))
NOBODY = tuple(map(address, "127.0.0.1 169.254.0.1 224.0.0.1 255.255.255.255 0.0.0.0".split()))
# Addresses at which ports are published: some hosts have the first ones, and every host has the last one.
PUBLISHED_AT = tuple(map(address, "203.0.113.7 203.0.113.200 127.0.0.1".split()))
RANGES = (
    (1, 1), (65535, 65535), (1, 65535), (1, 1023), (1024, 65535), (22, 22), (79, 80), (80, 80), (80, 81), (81, 90),
    (443, 443),
)  # fmt: skip
PORTS = (0, 1, 2, 21, 22, 23, 78, 79, 80, 81, 82, 90, 91, 442, 443, 444, 1023, 1024, 65534, 65535)
TYPES = {ICMP: (0, 3, 8, 13, 15, 17, 255), ICMPV6: (1, 128, 129, 139, 255)}
NAMES = tuple(sorted({name for members in SUBNETS.values() for name in members} | {"two", "three", "ghost"}))
FILE = "policy.json"


# -- policies ------------------------------------------------------------------------------------------------------

endpoints = st.one_of(
    st.sampled_from([Endpoint("any"), Endpoint("internet")]),
    st.sampled_from(NETWORKS).map(lambda prefix: Endpoint("prefix", prefix=prefix)),
    st.builds(Endpoint, st.sampled_from(["subnet", "instance"]), st.sampled_from(NAMES)),
    st.builds(Endpoint, st.just("vpc"), st.sampled_from(["alpha", "beta", "ghost"])),
    st.builds(Endpoint, st.just("set"), st.sampled_from(["office", "own", "ghost"])),
)
often = st.sampled_from([True, True, True, True, False])
many_endpoints = st.one_of(st.none(), st.none(), st.lists(endpoints, max_size=3).map(tuple))
limits = st.builds(Limit, st.sampled_from([1, 10]), st.sampled_from(["second", "minute", "hour", "day"]), st.just(5))


protocols = st.sampled_from([None, TCP, TCP, UDP, SCTP, ICMP, ICMPV6, GRE, 0, 255])


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """One rule; its origin is set by the policy that holds it."""
    protocol = draw(protocols)
    action = draw(st.sampled_from(Action))
    ports = types = None
    if protocol in PORT_PROTOCOLS:
        ports = draw(st.none() | st.lists(st.sampled_from(RANGES), max_size=3).map(tuple))
    elif protocol in ICMP_PROTOCOLS:
        one = st.sampled_from(TYPES[protocol]).map(lambda number: (number, number))
        types = draw(st.none() | st.lists(one, max_size=3).map(tuple))
    limit = draw(st.none() | limits) if action is Action.ALLOW else None
    log = draw(st.sampled_from([False, False, False, True]))
    return Rule(action, protocol, ports, types, draw(many_endpoints), draw(many_endpoints), log, limit)


@st.composite
def rule_lists(draw: st.DrawFn) -> list[Rule]:
    """Rules of one direction, now and then none or one of them twice."""
    found = draw(st.lists(rules(), min_size=draw(st.sampled_from([0, 1, 3, 5])), max_size=7))
    if found and draw(st.booleans()):
        found.insert(draw(st.integers(0, len(found))), draw(st.sampled_from(found)))
    return found


defaults = st.sampled_from([None, Action.ALLOW, Action.DENY])


@st.composite
def policies(draw: st.DrawFn, file: str = FILE) -> Policy:
    """A policy in the form in which reading a document leaves it."""
    found: dict[Direction, tuple[Rule, ...] | None] = {}
    stated = []
    for direction in Direction:
        chosen = draw(rule_lists()) if draw(often) else None
        found[direction] = None if chosen is None else with_origins(chosen, direction, file)
        if (default := draw(defaults)) is not None:
            stated.append((direction, default))
    # Of two policies at one gate both may have a set of this name.
    own = st.sampled_from([("10.0.0.2/32", "203.0.113.0/25"), ("10.0.0.16/29",)])
    sets = draw(st.just(()) | own.map(lambda texts: (("own", tuple(map(network, texts))),)))
    return Policy(found[Direction.INGRESS], found[Direction.EGRESS], tuple(stated), sets, "", file, "")


def with_origins(found: list[Rule], direction: Direction, file: str = FILE) -> tuple[Rule, ...]:
    """The rules with the origins that reading would give them."""
    return tuple(
        dataclasses.replace(rule, origin=Origin(file, f"/{direction.value}/{number}"))
        for number, rule in enumerate(found)
    )


# -- worlds --------------------------------------------------------------------------------------------------------


def instance(vpc: str, name: str, *addresses: str) -> Instance:
    """An instance with the MAC address of its names."""
    return Instance(name, tuple(map(address, addresses)), names.stable_mac(vpc, name, "0"))


@st.composite
def subnets(draw: st.DrawFn, vpc: str, name: str, dual: bool) -> Subnet:
    """The subnet `name` of `vpc`, with none to three instances; both IP versions if `dual`."""
    prefixes = _prefixes(vpc, name, dual)
    members = _members(vpc, name, prefixes, draw(st.sampled_from([0, 1, 3])))
    public = draw(st.booleans())
    policy = draw(policies(f"{vpc}-{name}.json")) if draw(often) else None
    return Subnet(name, prefixes, public, not public and draw(st.booleans()), members, policy)


def _prefixes(vpc: str, subnet: str, dual: bool) -> tuple[Network, ...]:
    found = [network(SUBNETS[vpc][subnet])]
    if dual:
        found.append(network(f"{PREFIXES6[vpc].removesuffix(':/64')}:{SUBNETS6[subnet]:x}/120"))
    return tuple(found)


def _members(vpc: str, subnet: str, prefixes: tuple[Network, ...], count: int) -> tuple[Instance, ...]:
    """As many instances, at the lowest addresses, where prefixes and endpoints meet them."""
    wanted = [subnet, f"{subnet}-two", f"{subnet}-three"][: min(count, prefixes[0].num_addresses - 3)]
    return tuple(
        instance(vpc, name, *(str(prefix.network_address + number) for prefix in prefixes))
        for number, name in enumerate(wanted, 2)
    )


@st.composite
def vpcs(draw: st.DrawFn, name: str, index: int, dual: bool = False) -> Vpc:
    """A VPC with some of its possible subnets, published ports and sets."""
    chosen = [part for part in SUBNETS[name] if draw(st.booleans())]
    parts = tuple(draw(subnets(name, part, dual)) for part in chosen)
    members = [one.name for part in parts for one in part.instances]
    published: tuple[Publication, ...] = ()
    if members:
        one = st.builds(
            Publication,
            st.sampled_from([TCP, UDP]),
            # Host ports are one pool for all VPCs.
            st.sampled_from([8000 + 10 * index + 3 * number for number in range(3)]),
            st.sampled_from(members),
            st.sampled_from([1, 80, 443, 65533]),
            st.sampled_from([1, 1, 2, 3]),
            st.sampled_from([None, None, None, *PUBLISHED_AT]),
        )
        for item in draw(st.lists(one, max_size=4, unique_by=lambda item: (item.protocol, item.port, item.address))):
            beside = [other for other in published if (other.protocol, other.port) == (item.protocol, item.port)]
            if (item.address is not None and all(other.address is not None for other in beside)) or not beside:
                published = (*published, placed(item, published))
    sets = draw(st.sampled_from([(), (("office", (network("203.0.113.0/25"), network("10.0.0.72/29"))),)]))
    prefixes = [network(PREFIXES[name]), *([network(PREFIXES6[name])] if dual else [])]
    # With more of them little would pass.
    policy = draw(policies(f"{name}.json")) if draw(st.integers(0, 3)) == 3 else None
    return Vpc(name, tuple(prefixes), index, parts, published, sets, policy=policy)


@st.composite
def worlds(draw: st.DrawFn, dual: bool = False) -> World:
    """A world with ``alpha`` and maybe others; `dual` turns IPv6 on everywhere."""
    others = [name for name in ("beta", "loner") if draw(often if name == "beta" else st.booleans())]
    members = tuple(draw(vpcs(name, index, dual)) for index, name in enumerate(["alpha", *others]))
    peered = "beta" in others and draw(often)
    return World(members, (Peering("alpha", "beta"),) if peered else ())


# A host's own addresses: single ones and prefixes, in the midst of OUTSIDE and on its edges, and in places that are
# nobody's or a VPC's.
HOST_ADDRESSES = tuple(
    map(
        network,
        "203.0.113.7/32 203.0.113.0/32 203.0.113.112/28 10.0.0.129/32 10.0.0.2/32 127.0.0.0/8 127.0.0.1/32"
        " 100.64.0.0/32 2001:db8:ffff::1/128".split(),
    )
)
BROADCASTS = tuple(map(network, "203.0.113.255/32 203.0.113.128/32 10.0.0.127/32 127.255.255.255/32".split()))
hosts = st.builds(
    Host,
    st.lists(st.sampled_from(HOST_ADDRESSES), max_size=5, unique=True).map(tuple),
    st.lists(st.sampled_from(BROADCASTS), max_size=3, unique=True).map(tuple),
    st.booleans(),
)


CLOSE = "10.0.0.0/28 10.0.0.2 10.0.0.3 10.0.0.0/29 10.0.0.0/26 10.0.0.64/26 0.0.0.0/0 203.0.113.0/24 203.0.113.0/25"
CLOSE6 = "::/0 2001:db8:0:b::/64 2001:db8:0:a::102 2001:db8:0:a::200/120 2001:db8::/32"
OWN, OWN6 = "10.0.0.2 10.0.0.2/31 10.0.0.4 10.0.0.0/28 10.0.0.0/26", "2001:db8:0:a::102 2001:db8:0:a::100/120 ::/0"


def disputes(dual: bool = True) -> st.SearchStrategy[tuple[World, Subnet, Direction]]:
    """A world with one gate, whose rules contend for the same few packets (some with IPv6 if `dual`), and whose it is.

    Made by plain chance: hypothesis likes its examples small, and a dispute needs many rules of few parts.
    """
    return st.randoms(use_true_random=True).map(lambda chance: _dispute(chance, dual and chance.random() < 0.4))


def _dispute(chance: random.Random, dual: bool) -> tuple[World, Subnet, Direction]:
    direction = chance.choice(list(Direction))
    far = _few_of(f"{CLOSE} {CLOSE6 if dual else ''}", chance)
    near = _few_of(f"{OWN} {OWN6 if dual else ''}", chance) if chance.random() < 0.5 else [None]
    icmp = ICMPV6 if dual and chance.random() < 0.7 else ICMP
    protocols = chance.choice([(TCP,), (icmp,), (None, TCP), (None, icmp), (None, TCP, icmp)])
    spans = chance.sample(RANGES, 3)
    made = []
    for _ in range(chance.randint(2, 9)):
        ends = (chance.choice(far), chance.choice(near))
        made.append(
            _contender(chance, chance.choice(protocols), spans, *ends[:: 1 if direction is Direction.INGRESS else -1])
        )
    kept = {direction.value: with_origins(made, direction)}
    policy = Policy(**kept, defaults=((direction, chance.choice([Action.ALLOW, Action.DENY])),), file=FILE)
    # Now and then the first rules are the VPC's.
    first = chance.randint(1, len(made) - 1) if chance.random() < 0.3 else 0
    of_vpc = None
    if first:
        of_vpc = Policy(**{direction.value: with_origins(made[:first], direction, "alpha.json")}, file="alpha.json")
        policy = dataclasses.replace(policy, **{direction.value: with_origins(made[first:], direction)})
    served = tuple(Publication(TCP, port, "web", port) for port in (1, 22, 80, 443, 65535))
    parts = [_plain(name, index, dual, (served, ())[index]) for index, name in enumerate(["alpha", "beta"])]
    world = World(tuple(parts), (Peering("alpha", "beta"),))
    subnet = dataclasses.replace(world.vpc("alpha").subnet("web"), policy=policy)
    vpc = dataclasses.replace(world.vpc("alpha").with_subnet(subnet), policy=of_vpc)
    return world.with_vpc(vpc), subnet, direction


def products(dual: bool = True) -> st.SearchStrategy[tuple[World, Subnet, Direction]]:
    """Disputes in which most rules are long lists on every side, too long to be multiplied out."""
    return st.randoms(use_true_random=True).map(lambda chance: _with_products(chance, dual and chance.random() < 0.4))


def _with_products(chance: random.Random, dual: bool) -> tuple[World, Subnet, Direction]:
    world, subnet, direction = _dispute(chance, dual)
    lists = [_spaced(chance, words) for words in (FAR_LISTS, FAR_LISTS, NEAR_LISTS, NEAR_LISTS)]

    def widened(rule: Rule) -> Rule:
        if chance.random() < 0.3:
            return rule
        ends = (chance.choice(lists[:2]), chance.choice(lists[2:]))
        sources, destinations = ends if direction is Direction.INGRESS else ends[::-1]
        ports = rule.ports and tuple((low, low + chance.randint(0, 1)) for low in (22, 80, 90, 443, 1023, 65534))
        return dataclasses.replace(rule, sources=sources, destinations=destinations, ports=ports)

    rules = tuple(map(widened, subnet.policy.rules(direction)))
    policy = dataclasses.replace(subnet.policy, **{direction.value: rules})
    subnet = dataclasses.replace(subnet, policy=policy)
    return world.with_vpc(world.vpc("alpha").with_subnet(subnet)), subnet, direction


# Addresses near each other that do not join to one prefix, and prefixes beside them, of both IP versions.
FAR_LISTS = "10.0.0.1 10.0.0.2 10.0.0.4/30 10.0.0.16/31 10.0.0.18 10.0.0.24/30 10.0.0.66 10.0.0.72/29 203.0.113.0/25"
FAR_LISTS += " 203.0.113.200 2001:db8:0:a::/80 2001:db8:0:b::/64 2001:db8:0:a:200::/96"
NEAR_LISTS = "10.0.0.2 10.0.0.4/31 10.0.0.7 10.0.0.8/30 10.0.0.13 10.0.0.15 2001:db8:0:a::100/121 2001:db8:0:a::/121"


def _spaced(chance: random.Random, words: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("prefix", prefix=network(word)) for word in words.split() if chance.random() < 0.9)


Ends = tuple[Endpoint, ...] | None


def _contender(chance: random.Random, protocol: int | None, spans: list, sources: Ends, destinations: Ends) -> Rule:
    action = chance.choice(list(Action))
    ports = types = None
    if protocol == TCP and chance.random() < 0.8:
        ports = tuple(chance.sample(spans, chance.randint(1, 2)))
    elif protocol in ICMP_PROTOCOLS and chance.random() < 0.6:
        types = tuple((number, number) for number in chance.sample(TYPES[protocol], chance.randint(1, 3)))
    limit = Limit(10, "minute") if action is Action.ALLOW and chance.random() < 0.3 else None
    return Rule(action, protocol, ports, types, sources, destinations, chance.random() < 0.2, limit)


def _few_of(texts: str, chance: random.Random) -> list[Ends]:
    """A few lists of endpoints, None among them, so that several rules have the same."""
    some = [Endpoint("prefix", prefix=network(text)) for text in texts.split()]
    some += [Endpoint("any"), Endpoint("internet"), Endpoint("subnet", "db"), Endpoint("instance", "web-two")]
    return [None, *(tuple(chance.sample(some, chance.randint(1, 3))) for _ in range(chance.randint(1, 3)))]


def _plain(vpc: str, index: int, dual: bool, served: tuple[Publication, ...]) -> Vpc:
    """A VPC whose first two subnets are public, full, and without policy."""
    parts = []
    for name in list(SUBNETS[vpc])[:2]:
        prefixes = _prefixes(vpc, name, dual)
        parts.append(Subnet(name, prefixes, True, False, _members(vpc, name, prefixes, 3)))
    prefixes = [network(PREFIXES[vpc]), *([network(PREFIXES6[vpc])] if dual else [])]
    return Vpc(vpc, tuple(prefixes), index, tuple(parts), served)


# -- flows ---------------------------------------------------------------------------------------------------------


def flows(world: World, chance: random.Random, count: int) -> list[Flow]:
    """Flows between the places of `world`, most of them such that its rules and topology concern them."""
    return [_flow(world, chance) for _ in range(count)]


def flows_through(world: World, subnet: Subnet, direction: Direction, chance: random.Random, count: int) -> list[Flow]:
    """Flows that the gate of a subnet of ``alpha`` is asked about."""
    found = []
    while len(found) < count:
        own = Place("alpha", chance.choice(chance.choice(subnet.instances).addresses))
        peer = _place(world, chance, chance.choice([*world.vpcs, world.vpcs[0], None]))
        if own.address.version == peer.address.version:
            rule = chance.choice(subnet.policy.rules(direction))
            service = _service(rule, chance, own.address.version == 6)
            ends = (own, peer) if direction is Direction.EGRESS else (peer, own)
            found.append(Flow(*ends, *service))
    return found


def _flow(world: World, chance: random.Random) -> Flow:
    source, destination = _ends(world, chance)
    six = source.address.version == 6
    vpc = next((one for one in world.vpcs if one.name == destination.vpc), None)
    if source.vpc is None and vpc and vpc.publications and not six and chance.random() < 0.8:
        item = chance.choice(vpc.publications)
        served = Place(vpc.name, vpc.instance(item.instance).addresses[0])
        if chance.random() < 0.2:
            source = Place(None, uplink_pair(world.transit, vpc.index)[0])
        return Flow(source, served, item.protocol, near(item.targets, chance))
    called = [item for other in world.vpcs for item in other.publications]
    if source.vpc is not None and destination.vpc is None and not six and called and chance.random() < 0.3:
        item = chance.choice(called)
        at = item.address if item.address and not item.local else chance.choice(OUTSIDE)
        return Flow(source, Place(None, at), item.protocol, near(item.ports, chance))
    return Flow(source, destination, *_service(_concerned(world, chance, source, destination), chance, six))


def near(span: tuple[int, int], chance: random.Random) -> int:
    """A port of a range, or beside it."""
    low, high = span
    return min(chance.choice([low, low, low + 1, high, high + 1]), HIGHEST_PORT)


def _ends(world: World, chance: random.Random) -> tuple[Place, Place]:
    """Two places of one IP version; nearly always such that a router sees the flow, mostly such that it may pass."""
    source = _place(world, chance, chance.choice([*world.vpcs, *world.vpcs, None]))
    there: list[Vpc | None] = [*world.vpcs, None]
    if source.vpc is not None:
        vpc = world.vpc(source.vpc)
        there += [vpc] * 6 + [*world.peers(vpc.name)] * 3 + [None]
    while True:
        destination = _place(world, chance, chance.choice(there))
        if destination.address.version == source.address.version:
            return source, destination


def _place(world: World, chance: random.Random, vpc: Vpc | None) -> Place:
    if vpc is None:
        six = 6 in world.vpcs[0].versions and chance.random() < 0.5
        return Place(None, address("2001:db8:ffff::1") if six else chance.choice([*OUTSIDE, *OUTSIDE, *NOBODY]))
    if vpc.instances and chance.random() < 0.95:
        return Place(vpc.name, chance.choice(chance.choice(vpc.instances).addresses))
    return Place(vpc.name, _nobody(vpc, chance))


def _nobody(vpc: Vpc, chance: random.Random) -> Address:
    """An address of the VPC that is no instance's."""
    taken = {one for member in vpc.instances for one in member.addresses}
    prefix = chance.choice([part for subnet in vpc.subnets for part in subnet.prefixes] or vpc.prefixes)
    offsets = [prefix.num_addresses - 1, prefix.num_addresses - 2, 0, 1, 3]
    return next(one for offset in offsets if (one := prefix.network_address + offset) not in taken)


def _concerned(world: World, chance: random.Random, source: Place, destination: Place) -> Rule | None:
    """A rule of one of the gates between two places, or None."""
    found = []
    for place, direction in ((source, Direction.EGRESS), (destination, Direction.INGRESS)):
        for subnet in world.vpc(place.vpc).subnets if place.vpc else ():
            if any(place.address in prefix for prefix in subnet.prefixes):
                for policy in (world.vpc(place.vpc).policy, subnet.policy):
                    found += policy.rules(direction) or () if policy else ()
    return chance.choice(found) if found else None


def _service(rule: Rule | None, chance: random.Random, six: bool) -> tuple[int, int | None]:
    """A protocol and port, or ICMP type, at or beside the edges of what `rule` matches."""
    icmp = ICMPV6 if six else ICMP
    protocol = rule.protocol if rule and chance.random() < 0.8 else None
    if protocol is None or protocol in ICMP_PROTOCOLS - {icmp}:
        protocol = chance.choice([TCP, TCP, UDP, SCTP, GRE, 0, 255, icmp, icmp])
    if protocol in ICMP_PROTOCOLS:
        return protocol, chance.choice(TYPES[protocol])
    if protocol not in PORT_PROTOCOLS:
        return protocol, None
    edges = [
        edge + beside for low, high in (rule and rule.ports) or () for edge in (low, high) for beside in (-1, 0, 1)
    ]
    edges = [port for port in edges if 0 <= port <= HIGHEST_PORT]
    return protocol, chance.choice(edges or PORTS)
