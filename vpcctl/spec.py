"""JSON to model and back: the only place that knows the JSON's words.

`read_policies` and `read_environment` read what people write, and tell all problems of a document at once.
`world_to_json` and `world_from_json` are the form in which the state file keeps a world: an environment with what we
allocated beside it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from vpcctl import documents, names
from vpcctl.errors import DocumentError, Problem, VpcctlError
from vpcctl.model import Instance, Network, Peering, Publication, Subnet, Vpc, World
from vpcctl.plain import plainly_valid
from vpcctl.policy import (
    HIGHEST_PORT,
    ICMP,
    ICMP_PROTOCOLS,
    ICMPV6,
    LOWEST_PORT,
    PORT_PROTOCOLS,
    PROTOCOL_NAMES,
    PROTOCOLS,
    Action,
    Direction,
    Endpoint,
    Limit,
    Policy,
    Range,
    Rule,
)
from vpcctl.remains import GAP, pointers, remains

# The names that nft(8) uses for ICMP and ICMPv6 types (RFC 792, RFC 4443, RFC 4861).
ICMP_TYPES = {
    "echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8,
    "router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12,
    "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15, "info-reply": 16,
    "address-mask-request": 17, "address-mask-reply": 18,
}  # fmt: skip
ICMPV6_TYPES = {
    "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
    "echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131,
    "mld-listener-done": 132, "nd-router-solicit": 133, "nd-router-advert": 134, "nd-neighbor-solicit": 135,
    "nd-neighbor-advert": 136, "nd-redirect": 137, "router-renumbering": 138, "ind-neighbor-solicit": 141,
    "ind-neighbor-advert": 142, "mld2-listener-report": 143,
}  # fmt: skip
HIGHEST_PROTOCOL = 255
SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
TYPE_NAMES = {ICMP: ICMP_TYPES, ICMPV6: ICMPV6_TYPES}


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyDocument:
    """One policy as read: `vpc` and `subnet` are the words of the document, None where it is silent."""

    vpc: str | None
    subnet: str | None
    policy: Policy


# -- what people write: policies -----------------------------------------------------------------------------------


def read_policies(document: Any, file: str) -> list[PolicyDocument]:
    """The policies of one parsed file; DocumentError with every problem in it."""
    reader = _Reader(file)
    sound = document
    if not plainly_valid(document):
        reader.problems += documents.structure_problems(document, "policy", file)
        # Whatever else is wrong is told at the same time.
        sound = remains(document, reader.problems)
    found = list(reader.documents(sound))
    reader.finish(document)
    return found


def read_policy(document: Any, file: str, pointer: str) -> Policy:
    """One policy within another document, whose structure was checked before."""
    reader = _Reader(file)
    found = reader.policy(document, pointer, {})
    reader.finish()
    return found.policy


class _Reader:
    """Collects problems while it reads on."""

    def __init__(self, file: str):
        self.file = file
        self.problems: list[Problem] = []

    def finish(self, document: Any = None) -> None:
        """Raise DocumentError if there are problems, those of `document` in the order of their places in it."""
        if self.problems:
            place = {pointer: number for number, pointer in enumerate(pointers(document))}
            after = len(place)
            places = [place.get(one.pointer, after) if one.file == self.file else after for one in self.problems]
            order = sorted(range(len(places)), key=places.__getitem__)
            raise DocumentError(*(self.problems[number] for number in order))

    def attempt(self, pointer: str, read: Callable[..., Any], *arguments: Any) -> Any:
        """`read(*arguments)`; where that raises ValueError, a problem at `pointer` and None."""
        try:
            return read(*arguments)
        except ValueError as wrong:
            self.problems.append(Problem(self.file, pointer, str(wrong)))
            return None

    def documents(self, document: Any) -> Iterator[PolicyDocument]:
        """The policies of a file: one, an array, or an object that holds an array."""
        if document is GAP:
            return
        if isinstance(document, list):
            for number, inner in _sound(document):
                yield self.policy(inner, f"/{number}", {})
        elif "policies" in document:
            sets = self.sets(document.get("sets", {}), "/sets")
            for number, inner in _sound(document["policies"]):
                found = self.policy(inner, f"/policies/{number}", sets)
                yield dataclasses.replace(found, vpc=found.vpc or document.get("vpc"))
        else:
            yield self.policy(document, "", {})

    def policy(self, document: dict, pointer: str, shared: dict[str, tuple[Network, ...]]) -> PolicyDocument:
        sets = {**shared, **self.sets(document.get("sets", {}), f"{pointer}/sets")}
        rules = {
            direction: tuple(
                self.rule(rule, f"{pointer}/{direction.value}/{number}")
                for number, rule in _sound(document[direction.value])
            )
            if direction.value in document
            else None
            for direction in Direction
        }
        defaults = document.get("default", {})
        policy = Policy(
            rules[Direction.INGRESS],
            rules[Direction.EGRESS],
            tuple((side, Action(defaults[side.value])) for side in Direction if side.value in defaults),
            tuple(sets.items()),
            document.get("description", ""),
            self.file,
            pointer,
        )
        return PolicyDocument(document.get("vpc"), document.get("subnet"), policy)

    def sets(self, document: dict, pointer: str) -> dict[str, tuple[Network, ...]]:
        return {
            name: tuple(
                prefix
                for number, text in _sound(prefixes)
                if (prefix := self.attempt(f"{pointer}/{documents.escape(name)}/{number}", parse_prefix, text))
            )
            for name, prefixes in document.items()
        }

    def rule(self, document: dict, pointer: str) -> Rule:
        told = len(self.problems)
        protocol = self.attempt(f"{pointer}/protocol", _protocol, document.get("protocol", "any"))
        if len(self.problems) > told:
            document = {field: value for field, value in document.items() if field not in ("port", "icmp_type")}
        action = Action(document["action"])
        limit = self.attempt(f"{pointer}/limit", _limit, document["limit"], action) if "limit" in document else None
        return Rule(
            action,
            protocol,
            self.many(document, "port", pointer, _ports, protocol, whole=_every_port),
            self.many(document, "icmp_type", pointer, _icmp_type, protocol),
            self.many(document, "source", pointer, parse_endpoint),
            self.many(document, "destination", pointer, parse_endpoint),
            document.get("log", False),
            limit,
            document.get("description", ""),
            f"{self.file}#{pointer}",
        )

    def many(self, document: dict, field: str, pointer: str, read: Callable, *more: Any, whole: Callable | None = None):
        """A field that holds one value or an array of them, as a tuple; None if it is absent or means everything."""
        if field not in document:
            return None
        value = document[field]
        if isinstance(value, list):
            places = [(inner, f"{pointer}/{field}/{number}") for number, inner in _sound(value)]
        else:
            places = [(value, f"{pointer}/{field}")]
        found = tuple(one for inner, place in places if (one := self.attempt(place, read, inner, *more)) is not None)
        return None if whole and whole(found) else found


def _sound(values: list) -> Iterator[tuple[int, Any]]:
    """Each of `values` with its place, without those that were wrong by themselves."""
    return ((number, value) for number, value in enumerate(values) if value is not GAP)


def _protocol(value: str | int) -> int | None:
    text = str(value).lower()
    if text == "any":
        return None
    if isinstance(value, float):
        raise ValueError(f"{value} is not a protocol number (0–255); write {int(value)}")
    number = PROTOCOLS[text] if text in PROTOCOLS else int(text)
    if number > HIGHEST_PROTOCOL:
        raise ValueError(f"{documents.quote(value)} is not a protocol number (0–255)")
    return number


def _ports(value: str | int, protocol: int | None) -> Range:
    if protocol not in PORT_PROTOCOLS:
        has = "any protocol" if protocol is None else PROTOCOL_NAMES.get(protocol, f"protocol {protocol}")
        if not (protocol is None and value == "*"):
            raise ValueError(
                f'{documents.quote(value)} is a port, and {has} has none; add "protocol": tcp, udp or sctp'
            )
    if value == "*":
        return EVERY_PORT
    if isinstance(value, float):
        raise ValueError(f"{value} is not a port (1–65535); write {int(value)}")
    low, _, high = str(value).partition("-")
    span = int(low), int(high or low)
    for port in span:
        if not LOWEST_PORT <= port <= HIGHEST_PORT:
            raise ValueError(f"{port} is not a port (1–65535)")
    if span[0] > span[1]:
        raise ValueError(f"{documents.quote(value)} is an empty range; {span[1]}-{span[0]} is the other way round")
    return span


EVERY_PORT = (0, HIGHEST_PORT)


def _every_port(found: tuple[Range, ...]) -> bool:
    return EVERY_PORT in found


def _icmp_type(value: str | int, protocol: int | None) -> Range:
    if protocol not in ICMP_PROTOCOLS:
        raise ValueError(f'{documents.quote(value)} is an ICMP type; add "protocol": "icmp" or "icmpv6"')
    if isinstance(value, str):
        known = TYPE_NAMES[protocol]
        if value not in known:
            hint = documents.nearest(value, sorted(known))
            raise ValueError(f"{documents.quote(value)} is no type of {PROTOCOL_NAMES[protocol]}; {hint}")
        value = known[value]
    return int(value), int(value)


def _limit(text: str, action: Action) -> Limit:
    if action is not Action.ALLOW:
        raise ValueError(f"a limit goes with the action allow, and this rule's is {action.value}")
    rate, _, rest = text.partition("/")
    unit, _, burst = rest.partition(" burst ")
    limit = Limit(int(rate), unit, int(burst)) if burst else Limit(int(rate), unit)
    # The kernel keeps the burst as the nanoseconds that it is worth, in 64 bits (net/netfilter/nft_limit.c).
    most = (2**64 - 1) // (SECONDS[unit] * 10**9 // limit.rate)
    if limit.burst > most:
        raise ValueError(f"{documents.quote(text)} has a burst that the kernel cannot count; {most} is the highest")
    return limit


def parse_endpoint(text: str) -> Endpoint:
    """An endpoint of the language; ValueError says what is wrong with it."""
    if text in ("any", "internet"):
        return Endpoint(text)
    kind, colon, name = text.partition(":")
    if colon and kind in ("subnet", "instance", "vpc", "set"):
        return Endpoint(kind, name)
    return Endpoint("prefix", prefix=parse_prefix(text))


def parse_prefix(text: str) -> Network:
    """A prefix without host bits, or an address as a prefix of full length; ValueError says what is wrong."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{documents.quote(text)} is not a prefix such as 10.0.1.0/24") from None
    raise ValueError(f"{documents.quote(text)} has bits set beyond its prefix length; {meant} is the prefix")


def _own_prefix(text: str) -> Network:
    """A prefix that a VPC or a subnet may have."""
    prefix = parse_prefix(text)
    if prefix.version != 4:
        raise ValueError(f"{documents.quote(text)} is an IPv6 prefix, which is not supported yet; IPv4 is expected")
    return prefix


ANY_PREFIX = "0.0.0.0/0"


# -- what people write: environments -------------------------------------------------------------------------------


def read_environment(
    document: Any, file: str, load: Callable[[str], tuple[Any, str]], present: World | None = None, serial: int = 0
) -> World:
    """The world that an environment document describes, and nothing beside it.

    What we allocate (uplinks, addresses, MACs) is kept from the world `present` where it has the object already, and
    else allocated in the document's order.  `load` returns the parsed document and the name of a policy's path.
    DocumentError with every problem found.
    """
    reader = _Environment(file, load, present or World(), serial)
    reader.problems += documents.structure_problems(document, "environment", file)
    if reader.problems:
        reader.words(remains(document, reader.problems))
    reader.finish(document)
    world = reader.world(document)
    reader.finish(document)
    return world


class _Environment(_Reader):
    def __init__(self, file: str, load: Callable[[str], tuple[Any, str]], present: World, serial: int):
        super().__init__(file)
        self._load, self._present, self._serial = load, present, serial

    def world(self, document: dict) -> World:
        named = [inner["name"] for inner in document.get("vpcs", ())]
        taken = {vpc.name: vpc.index for vpc in self._present.vpcs}
        free = (index for index in itertools.count() if index not in taken.values())
        vpcs = [
            self.vpc(inner, f"/vpcs/{number}", taken[name] if name in taken else next(free))
            for number, (name, inner) in enumerate(zip(named, document.get("vpcs", ()), strict=True))
        ]
        self.finish(document)
        pairs = [
            self.guarded(f"/peerings/{number}", Peering.between, *pair)
            for number, pair in enumerate(document.get("peerings", ()))
        ]
        for number, pair in enumerate(document.get("peerings", ())):
            for place, name in enumerate(pair):
                if name not in (*named, *taken):
                    words = f"there is no VPC {name!r}; {documents.nearest(name, sorted({*named, *taken}))}"
                    self.problems.append(Problem(self.file, f"/peerings/{number}/{place}", words))
        self.finish(document)
        # A peering may name a VPC that stands beside the document; it is put to the world when that is known.
        own = tuple(pair for pair in pairs if pair.one in named and pair.other in named)
        made = self.guarded("", World, tuple(vpcs), own, self._present.transit)
        self.finish(document)
        return made

    def words(self, document: Any) -> None:
        """Find what is wrong in the words of a document whose structure is wrong somewhere else."""
        for number, vpc in _sound([] if document is GAP else document.get("vpcs", [])):
            place = f"/vpcs/{number}"
            self.attempt(f"{place}/cidr", _own_prefix, vpc.get("cidr", ANY_PREFIX))
            self.sets(vpc.get("sets", {}), f"{place}/sets")
            for inner, subnet in _sound(vpc.get("subnets", [])):
                self.attempt(f"{place}/subnets/{inner}/cidr", _own_prefix, subnet.get("cidr", ANY_PREFIX))
                self.policy_of(subnet, f"{place}/subnets/{inner}")
                for last, instance in _sound(subnet.get("instances", [])):
                    if "ip" in instance:
                        self.attempt(f"{place}/subnets/{inner}/instances/{last}/ip", parse_address, instance["ip"])

    def policy_of(self, subnet: dict, pointer: str) -> Policy | None:
        """The subnet's policy, if it has one."""
        if "policy" not in subnet:
            return None
        return self.guarded(f"{pointer}/policy", self.attached, subnet["policy"], pointer)

    def guarded(self, pointer: str, make: Callable[..., Any], *arguments: Any) -> Any:
        """`make(*arguments)`; what our own checks refuse becomes a problem at `pointer`."""
        try:
            return make(*arguments)
        except DocumentError as error:
            self.problems += [
                problem if isinstance(problem, Problem) else Problem(self.file, pointer, problem)
                for problem in error.problems
            ]
        except VpcctlError as error:
            self.problems.append(Problem(self.file, pointer, str(error)))
        return None

    def vpc(self, document: dict, pointer: str, index: int) -> Vpc | None:
        prefix = self.attempt(f"{pointer}/cidr", _own_prefix, document["cidr"])
        subnets = [
            self.subnet(inner, f"{pointer}/subnets/{number}", document["name"])
            for number, inner in enumerate(document.get("subnets", ()))
        ]
        sets = self.sets(document.get("sets", {}), f"{pointer}/sets")
        published = tuple(
            # 8080.0 is an integer to JSON Schema, and no port to nftables.
            Publication(
                PROTOCOLS[inner["protocol"]],
                int(inner["port"]),
                inner["instance"],
                int(inner.get("target_port", inner["port"])),
            )
            for inner in document.get("publish", ())
        )
        if prefix is None or None in subnets:
            return None
        parts = (document["name"], (prefix,), index, tuple(subnets), published, tuple(sets.items()))
        return self.guarded(pointer, Vpc, *parts)

    def subnet(self, document: dict, pointer: str, vpc: str) -> Subnet | None:
        prefix = self.attempt(f"{pointer}/cidr", _own_prefix, document["cidr"])
        policy = self.policy_of(document, pointer)
        if prefix is None:
            return None
        public, gateway = document["type"] == "public", document.get("nat_gateway", False)
        made = self.guarded(pointer, Subnet, document["name"], (prefix,), public, gateway, (), policy)
        return made and self.populated(made, document, pointer, vpc)

    def populated(self, subnet: Subnet, document: dict, pointer: str, vpc: str) -> Subnet | None:
        """`subnet` with its instances: those with a given or a known address first, so that none is taken from them."""
        known = {
            one.name: one
            for found in self._present.vpcs
            if found.name == vpc
            for beside in found.subnets
            if (beside.name, beside.prefixes) == (subnet.name, subnet.prefixes)
            for one in beside.instances
        }
        wanted = document.get("instances", [{"name": document["name"]}])
        places = {number: f"{pointer}/instances/{number}" for number in range(len(wanted))}
        addresses: dict[int, Any] = {}
        for number, inner in enumerate(wanted):
            if "ip" in inner:
                addresses[number] = self.attempt(f"{places[number]}/ip", parse_address, inner["ip"])
            elif inner["name"] in known:
                addresses[number] = known[inner["name"]].addresses[0]
        made: Subnet | None = subnet
        for number in sorted(places, key=lambda number: (number not in addresses, number)):
            name, address = wanted[number]["name"], addresses.get(number)
            kept = known.get(name)
            if kept is not None and kept.addresses == (address,) and made is not None:
                made = self.guarded(places[number], _joined_by, made, kept)
            elif made is not None:
                made = self.guarded(places[number], with_instance, made, vpc, name, address, self._serial)
        if made is None:
            return None
        order = {inner["name"]: number for number, inner in enumerate(wanted)}
        return dataclasses.replace(made, instances=tuple(sorted(made.instances, key=lambda one: order[one.name])))

    def attached(self, policy: Any, pointer: str) -> Policy:
        if not isinstance(policy, str):
            return read_policy(policy, self.file, f"{pointer}/policy")
        document, file = self._load(policy)
        found = read_policies(document, file)
        if len(found) != 1:
            raise DocumentError(Problem(file, "", f"one policy is expected here, found {len(found)}"))
        return found[0].policy


def _joined_by(subnet: Subnet, instance: Instance) -> Subnet:
    return dataclasses.replace(subnet, instances=(*subnet.instances, instance))


def with_instance(subnet: Subnet, vpc: str, name: str, address: Any = None, serial: int = 0) -> Subnet:
    """`subnet` with a new instance, at `address` or the lowest free one.

    The MAC address depends on `serial`, so that an instance that is made again does not meet what is remembered of
    the one before.
    """
    addresses = subnet.free_addresses() if address is None else (address,)
    made = Instance(name, addresses, names.stable_mac(vpc, name, str(serial)))
    return dataclasses.replace(subnet, instances=(*subnet.instances, made))


def parse_address(text: str) -> Any:
    """An IP address; ValueError says what is wrong."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{documents.quote(text)} is not an address such as 10.0.1.9") from None


# -- what we keep --------------------------------------------------------------------------------------------------


def rule_to_json(rule: Rule) -> dict[str, Any]:
    """The rule in the words of the language, its origin left out."""
    document: dict[str, Any] = {"action": rule.action.value}
    if rule.protocol is not None:
        document["protocol"] = PROTOCOL_NAMES.get(rule.protocol, rule.protocol)
    if rule.ports is not None:
        document["port"] = _one_or_many([low if low == high else f"{low}-{high}" for low, high in rule.ports])
    if rule.icmp_types is not None:
        document["icmp_type"] = _one_or_many([low for low, _ in rule.icmp_types])
    for field, endpoints in (("source", rule.sources), ("destination", rule.destinations)):
        if endpoints is not None:
            document[field] = _one_or_many(list(map(str, endpoints)))
    if rule.log:
        document["log"] = True
    if rule.limit:
        document["limit"] = str(rule.limit)
    if rule.description:
        document["description"] = rule.description
    return document


def _one_or_many(values: list) -> Any:
    return values[0] if len(values) == 1 else values


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """The policy in the words of the language; where it came from is left out."""
    document: dict[str, Any] = {}
    if policy.description:
        document["description"] = policy.description
    if policy.sets:
        document["sets"] = {name: list(map(str, prefixes)) for name, prefixes in policy.sets}
    for direction in Direction:
        rules = policy.rules(direction)
        if rules is not None:
            document[direction.value] = [rule_to_json(rule) for rule in rules]
    if policy.defaults:
        document["default"] = {side.value: action.value for side, action in policy.defaults}
    return document


def world_to_json(world: World) -> dict[str, Any]:
    """The world as the state file keeps it."""
    return {
        "transit": str(world.transit),
        "opened": [list(pair) for pair in world.opened],
        "peerings": [[peering.one, peering.other] for peering in world.peerings],
        "vpcs": [_vpc_to_json(vpc) for vpc in world.vpcs],
    }


def _vpc_to_json(vpc: Vpc) -> dict[str, Any]:
    return {
        "name": vpc.name,
        "prefixes": list(map(str, vpc.prefixes)),
        "index": vpc.index,
        "sets": {name: list(map(str, prefixes)) for name, prefixes in vpc.sets},
        "publish": [dataclasses.asdict(publication) for publication in vpc.publications],
        "subnets": [
            {
                "name": subnet.name,
                "prefixes": list(map(str, subnet.prefixes)),
                "public": subnet.public,
                "nat_gateway": subnet.nat_gateway,
                "instances": [
                    {"name": one.name, "addresses": list(map(str, one.addresses)), "mac": one.mac}
                    for one in subnet.instances
                ],
                "policy": subnet.policy
                and {
                    "file": subnet.policy.file,
                    "pointer": subnet.policy.pointer,
                    "document": policy_to_json(subnet.policy),
                },
            }
            for subnet in vpc.subnets
        ],
    }


def world_from_json(document: dict[str, Any]) -> World:
    """The world that `world_to_json` wrote; KeyError, TypeError, ValueError or VpcctlError if it is none."""
    return World(
        tuple(map(_vpc_from_json, document["vpcs"])),
        tuple(Peering(*pair) for pair in document["peerings"]),
        ipaddress.ip_network(document["transit"]),
        tuple((link, value) for link, value in document["opened"]),
    )


def _vpc_from_json(document: dict[str, Any]) -> Vpc:
    return Vpc(
        document["name"],
        _prefixes(document["prefixes"]),
        document["index"],
        tuple(map(_subnet_from_json, document["subnets"])),
        tuple(Publication(**publication) for publication in document["publish"]),
        tuple((name, _prefixes(prefixes)) for name, prefixes in document["sets"].items()),
    )


def _subnet_from_json(document: dict[str, Any]) -> Subnet:
    kept = document["policy"]
    return Subnet(
        document["name"],
        _prefixes(document["prefixes"]),
        document["public"],
        document["nat_gateway"],
        tuple(
            Instance(one["name"], tuple(map(ipaddress.ip_address, one["addresses"])), one["mac"])
            for one in document["instances"]
        ),
        kept and read_policy(kept["document"], kept["file"], kept["pointer"]),
    )


def _prefixes(texts: list[str]) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))
