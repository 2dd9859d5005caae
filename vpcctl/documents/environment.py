"""What people write as environments, read: VPCs and all that is in them, and the peerings between them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

from vpcctl import names
from vpcctl.documents import fields, reading
from vpcctl.documents.assertions import stated
from vpcctl.documents.binding import unknown_names
from vpcctl.documents.diff import with_invariants
from vpcctl.documents.exports import EXAMPLE, refuse_export
from vpcctl.documents.fastpath import accepts, without_plain_parts
from vpcctl.documents.policies import PolicyDocument, Reader, check_sets, read_policy_file, sound
from vpcctl.documents.recovery import GAP, remains
from vpcctl.errors import ConflictError, DocumentError, Problem, VpcctlError
from vpcctl.model.network import (
    DEFAULT_MAX_FLOWS,
    DEFAULT_MAX_PORTS,
    Instance,
    Peering,
    Publication,
    Subnet,
    Vpc,
    World,
    check_apart,
    check_beside_transit,
    placed,
    port_range,
)
from vpcctl.model.operations import with_instance
from vpcctl.model.policy import PROTOCOLS, WHOLE_VPC, Address, Endpoint, Network, Policy
from vpcctl.values import dataclass

_V = TypeVar("_V")
# The fields of VPCs and policies that cannot replace their sets.
BESIDE_SETS = frozenset(
    {"name", "cidr", "subnets", "publish", "policy", "vpc", "subnet", "ingress", "egress", "default"}
)
# What may be wrong in a VPC without hiding the name of a subnet or an instance.
HARMLESS = re.compile(
    "/(?:name|cidr|sets|publish|hardened|mtu|max_flows|max_ports|nat_protocols|invariants|policy)(?:/.*)?"
    "|/subnets/[0-9]+/(?:cidr|type|nat_gateway|policy)(?:/.*)?"
    "|/subnets/[0-9]+/instances/[0-9]+/ip",
    re.DOTALL,
)


def read_environment(
    document: Any, file: str, load: Callable[[str], tuple[Any, str]], present: World | None = None, serial: int = 0
) -> World:
    """The world that an environment document describes, and nothing beside it.

    What we allocate (uplinks, addresses, MACs) is kept from the world `present` where it has the object already, and
    else allocated in the document's order.  `load` returns the parsed document and the name of a policy's path.
    DocumentError with every problem found.
    """
    refuse_export(document, file)
    if reading.kind_of(document) == "policy":
        raise DocumentError(Problem(file, "", "this is a policy; `vpcctl apply-policy` takes it"))
    vpcs = document.get("vpcs") if isinstance(document, dict) else None
    for number, vpc in enumerate(vpcs if isinstance(vpcs, list) else ()):
        check_sets(vpc, file, f"/vpcs/{number}")
    reader = _Environment(file, load, present or World(), serial)
    if not accepts("environment", document):
        reader.problems += reading.structure_problems(without_plain_parts(document), "environment", file)
    # Report all other problems at the same time.
    left = remains(document, reader.problems) if reader.problems else document
    if left is not GAP:
        reader.doubts = Doubts.of(left, reader.problems)
        world = reader.world(left)
        reader.tell_unknown_names(document, left)
    reader.finish(document)
    return with_invariants(world, stated(document, file))


@dataclass(frozen=True, slots=True)
class Doubts:
    """Objects that must not be reported as missing, because a wrong part of the document may contain them.

    `vpcs` are the places of VPCs of which some subnet or instance may be unknown; `world` is true if some VPC may be.
    `sets` are the places of VPCs and policies of which some named set may be unknown.
    """

    wrong: bool = False
    world: bool = False
    vpcs: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()

    @classmethod
    def of(cls, left: Any, problems: Iterable[Problem]) -> Doubts:
        """The doubts about a document of which only `left` could be read."""
        pointers = [problem.pointer for problem in problems]
        inners = left.get("vpcs", [])
        nameless = any(inner is GAP or "name" not in inner for inner in inners)
        world = nameless or any(re.fullmatch(r"/(?!(?:peerings|invariants)$)[^/]*", pointer) for pointer in pointers)
        vpcs, sets = set(), set()
        for pointer in pointers:
            if found := re.match(r"/vpcs/[0-9]+(?=/)", pointer):
                if not HARMLESS.fullmatch(pointer, found.end()) and not _is_named(left, pointer):
                    vpcs.add(found[0])
                holder, _, field = pointer.rpartition("/")
                if field not in BESIDE_SETS:
                    sets.add(holder)
        return cls(bool(pointers), world, frozenset(vpcs), frozenset(sets))


def _set_names(document: dict[str, Any]) -> Collection[str]:
    """The names of the sets of a VPC or a policy, those that are wrong too."""
    sets = document.get("sets")
    return sets.keys() if isinstance(sets, dict) else ()


def _overlap(one: Publication, other: Publication) -> bool:
    """Do two publications share a port of the host?"""
    ports = one.protocol == other.protocol and one.ports[0] <= other.ports[1] and other.ports[0] <= one.ports[1]
    return ports and (one.address is None or other.address is None or one.address == other.address)


def _is_named(left: Any, pointer: str) -> bool:
    """Does `pointer` lead to a subnet whose name is left?"""
    found = re.fullmatch("/vpcs/([0-9]+)/subnets/([0-9]+)", pointer)
    if found is None:
        return False
    vpc = left["vpcs"][int(found[1])]  # no gap, as something in it is wrong
    subnet = vpc["subnets"][int(found[2])]
    return subnet is not GAP and "name" in subnet


class _Environment(Reader):
    def __init__(self, file: str, load: Callable[[str], tuple[Any, str]], present: World, serial: int):
        super().__init__(file)
        self._load, self._present, self._serial = load, present, serial
        self._transit = present.transit
        # The publications, each with its place in the document.
        self._published: list[tuple[Publication, str]] = []
        self.doubts = Doubts()
        # The names of the sets in a policy's file, by the policy's place; None if they cannot be read.
        self._file_sets: dict[str, list[str] | None] = {}
        # The endpoints of each policy: the place of its VPC, its own place and its file.
        self._endpoints: list[tuple[str, str, str, list[tuple[str, Endpoint]]]] = []

    def world(self, document: dict[str, Any]) -> World:
        """The world, without the parts in which problems were found."""
        self._transit = self.transit(document)
        inners = document.get("vpcs", [])
        named = [inner["name"] for _, inner in sound(inners) if "name" in inner]
        taken = {vpc.name: vpc.index for vpc in self._present.vpcs}
        free = (index for index in itertools.count() if index not in taken.values())
        again = self.twice(
            (f"VPC {inner['name']}", f"/vpcs/{number}/name") for number, inner in sound(inners) if "name" in inner
        )
        vpcs = {}
        for number, inner in sound(inners):
            place, name = f"/vpcs/{number}", inner.get("name")
            found = self.vpc(inner, place, taken[name] if name in taken else next(free))
            if found is not None and f"{place}/name" not in again:
                vpcs[place] = found
        return self.joined(vpcs, self.pairs(document.get("peerings", []), {*named, *taken}))

    def transit(self, document: dict[str, Any]) -> Network:
        """The range of the uplinks: the present one, unless the document names another and no VPC uses it."""
        present = self._present.transit
        if "transit" not in document:
            return present
        found = self.attempt("/transit", fields.parse_own_prefix, document["transit"])
        if found is None or found == present:
            return present
        if self._present.vpcs:
            words = (
                f"the transit range is {present}, and VPCs use it; it can become {found} only while no VPC exists:"
                " remove this field, or run `vpcctl destroy --all` first"
            )
            self.problems.append(Problem(self.file, "/transit", words))
            return present
        return found

    def pairs(self, document: list[Any], known: set[str]) -> dict[str, Peering]:
        """The peerings by their places; `known` are the VPCs that there are."""
        found = {}
        for number, names_of in sound(document):
            place = f"/peerings/{number}"
            readable = list(sound(names_of))
            strange = [name for _, name in readable if name not in known]
            for inner, name in readable:
                if name in strange and not self.doubts.world:
                    words = f"VPC {name!r} not found; {reading.nearest(name, sorted(known))}"
                    self.problems.append(Problem(self.file, f"{place}/{inner}", words))
            pair = self.guarded(place, Peering.between, *names_of) if len(readable) == len(names_of) else None
            if pair is not None and not strange:
                found[place] = pair
        again = self.twice((f"the peering of {pair.one} and {pair.other}", place) for place, pair in found.items())
        return {place: pair for place, pair in found.items() if place not in again}

    def joined(self, vpcs: dict[str, Vpc], pairs: dict[str, Peering]) -> World:
        """The world of what was read, by its places; what cannot be beside that before it is a problem there."""
        names_of = {vpc.name for vpc in vpcs.values()}
        # A peering may name a VPC that stands beside the document; it is put to the world when that is known.
        own = {place: pair for place, pair in pairs.items() if {pair.one, pair.other} <= names_of}
        with contextlib.suppress(VpcctlError):
            return World(tuple(vpcs.values()), tuple(own.values()), self._transit)
        # Only now, as it takes the square of the time.
        world = World(transit=self._transit)
        for place, vpc in vpcs.items():
            world = self.guarded(place, world.with_vpc, vpc) or world
        there = {vpc.name for vpc in world.vpcs}
        for place, pair in own.items():
            if {pair.one, pair.other} <= there:
                world = self.guarded(place, _peered, world, pair) or world
        return world

    def twice(self, things: Iterable[tuple[str, str]]) -> set[str]:
        """The places of those of `things` (in words, with their places) that were named before: each a problem."""
        first: dict[str, str] = {}
        again = set()
        for words, place in things:
            before = first.setdefault(words, place)
            if before != place:
                told = f"{words} is already in this document, at #{before.removesuffix('/name')}; keep one"
                self.problems.append(Problem(self.file, place, told))
                again.add(place)
        return again

    def tell_unknown_names(self, document: Any, left: Any) -> None:
        """If there are other problems, report the endpoints that name nothing; else the whole world is checked."""
        if not self.problems:
            return
        present = self._present.vpcs_by_name
        declared = {inner["name"] for _, inner in sound(left.get("vpcs", [])) if "name" in inner}
        for vpc, place, file, endpoints in self._endpoints:
            number = int(vpc.rpartition("/")[2])
            inner, written = left["vpcs"][number], document["vpcs"][number]
            before = present.get(inner.get("name", ""))
            subnets = [subnet for _, subnet in sound(inner.get("subnets", []))]
            instances = {one.get("name", "") for subnet in subnets for one, _ in _instances(subnet, "")}
            known: dict[str, Collection[str] | None] = {
                "subnet": {one.get("name", "") for one in subnets} | set(before.subnets_by_name if before else ()),
                "instance": instances | set(before.instances_by_name if before else ()),
                "vpc": None if self.doubts.world else declared | present.keys(),
                "set": {*_set_names(written), *self._own_sets(document, place)},
            }
            if vpc in self.doubts.vpcs:
                known["subnet"] = known["instance"] = None
            if {vpc, place} & self.doubts.sets or self._file_sets.get(place, []) is None:
                known["set"] = None
            problems = unknown_names(endpoints, known, file)
            self.problems += [one if file == self.file else one.discreet() for one in problems]

    def _own_sets(self, document: Any, place: str) -> Iterable[str]:
        """The names of the sets of the policy at `place`, those that are wrong too."""
        for part in place.split("/")[1:]:
            document = document[int(part)] if isinstance(document, list) else document[part]
        return _set_names(document) if isinstance(document, dict) else self._file_sets.get(place) or ()

    def policy_of(self, holder: dict[str, Any], pointer: str, whole: bool = False) -> Policy | None:
        """The policy of a subnet, or of a VPC if `whole`, if it has one."""
        if "policy" not in holder:
            return None
        return self.guarded(f"{pointer}/policy", self.attached, holder["policy"], pointer, whole)

    def guarded(self, pointer: str, make: Callable[..., _V], *arguments: Any) -> _V | None:
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

    def vpc(self, document: dict[str, Any], pointer: str, index: int) -> Vpc | None:
        """A VPC; without what is in it where something of that is wrong, and None where it is wrong itself."""
        told = len(self.problems)
        name = document.get("name", "")
        prefix = self.prefix(document, pointer)
        alone = None
        named = name and self.guarded(f"{pointer}/name", _is_so, names.check_name, name, "VPC")
        if named and prefix is not None:
            alone = self.guarded(f"{pointer}/cidr", self.beside_transit, name, prefix, index)
        inners = document.get("subnets", [])
        subnets = {
            f"{pointer}/subnets/{number}": self.subnet(inner, f"{pointer}/subnets/{number}", name)
            for number, inner in sound(inners)
        }
        sets = self.sets(document.get("sets", {}), f"{pointer}/sets")
        policy = self.policy_of(document, pointer, whole=True)
        self.names_within(document, pointer)
        published = self.published(document, pointer)
        if alone is None or prefix is None:
            return None
        limits = self.limits(document, pointer)
        # A subnet that could not be read is a problem already.
        there = {place: subnet for place, subnet in subnets.items() if subnet is not None}
        hardened, mtu = document.get("hardened", False), self.mtu(document, name)
        parts = tuple(there.values()), published, tuple(sets.items()), *limits, hardened, mtu, policy
        if len(self.problems) == told:
            with contextlib.suppress(VpcctlError):
                return Vpc(name, (prefix,), index, *parts)
        self.places_of(there, alone)
        if len(self.problems) == told and not self.doubts.wrong:
            self.guarded(pointer, Vpc, name, (prefix,), index, *parts)
        return alone

    def limits(self, document: dict[str, Any], pointer: str) -> tuple[int, int, tuple[int, ...]]:
        """What a VPC may take of what all share, and the protocols without ports that are translated for it."""
        protocols = []
        for number, word in sound(document.get("nat_protocols", [])):
            place = f"{pointer}/nat_protocols/{number}"
            found = self.attempt(place, fields.parse_portless, word)
            if found in protocols:
                self.problems.append(Problem(self.file, place, f"protocol {found} is listed twice; keep one"))
            elif found is not None:
                protocols.append(found)
        # 8080.0 is an integer to JSON Schema.
        flows, ports = document.get("max_flows", DEFAULT_MAX_FLOWS), document.get("max_ports", DEFAULT_MAX_PORTS)
        return int(flows), int(ports), tuple(sorted(protocols))

    def mtu(self, document: dict[str, Any], vpc: str) -> int | None:
        """The MTU of a VPC's links: the given one, else the one that it has already."""
        if "mtu" in document:
            return int(document["mtu"])
        before = self._present.vpcs_by_name.get(vpc)
        return None if before is None else before.mtu

    def beside_transit(self, name: str, prefix: Network, index: int) -> Vpc:
        made = Vpc(name, (prefix,), index)
        check_beside_transit(made, self._transit)
        return made

    def names_within(self, document: dict[str, Any], pointer: str) -> None:
        """Report the names that occur twice in a VPC."""
        inners = document.get("subnets", [])
        owner = f"VPC {document['name']}" if "name" in document else "this VPC"
        self.twice(
            (f"subnet {inner['name']} of {owner}", f"{pointer}/subnets/{number}/name")
            for number, inner in sound(inners)
            if "name" in inner
        )
        wrong = {problem.pointer for problem in self.problems}
        self.twice(
            (f"instance {instance['name']} of {owner}", f"{place}/name")
            for number, inner in sound(inners)
            for instance, place in _instances(inner, f"{pointer}/subnets/{number}")
            # The implicit instance that has the subnet's name is not a second problem.
            if "name" in instance and f"{place}/name" not in wrong
        )

    def places_of(self, subnets: dict[str, Subnet], vpc: Vpc) -> None:
        """Report the subnets that are not inside their VPC, or that overlap an earlier subnet."""
        inside = [
            (place, subnet)
            for place, subnet in subnets.items()
            if self.guarded(f"{place}/cidr", _is_so, vpc.check_inside, subnet)
        ]
        for number, (place, subnet) in enumerate(inside):
            for _, before in inside[:number]:
                if not self.guarded(f"{place}/cidr", _is_so, check_apart, before, subnet):
                    break

    def published(self, document: dict[str, Any], pointer: str) -> tuple[Publication, ...]:
        """The ports that a VPC publishes, without those that are wrong."""
        inners = document.get("subnets", [])
        instances = [one for _, inner in sound(inners) for one, _ in _instances(inner, "")]
        there = sorted({one["name"] for one in instances if "name" in one})
        found = []
        for number, inner in sound(document.get("publish", [])):
            place = f"{pointer}/publish/{number}"
            if not inner.keys() >= {"protocol", "port", "instance"}:
                continue
            item = self.publication(inner, place)
            if item is None:
                continue
            if item.instance not in there and pointer not in self.doubts.vpcs:
                hint = reading.nearest(item.instance, there) if there else "known instances: none"
                ports = port_range(item.port, item.count)
                words = f"port {ports} is published for instance {item.instance}, which does not exist; {hint}"
                self.problems.append(Problem(self.file, f"{place}/instance", words))
            before = next((one for other, one in self._published if _overlap(item, other)), None)
            if before is not None:
                words = f"the host's port {item.service} is published at #{before} already; choose another"
                self.problems.append(Problem(self.file, f"{place}/port", words))
            self._published.append((item, place))
            found.append(item)
        return self.settled(document.get("name", ""), found)

    def settled(self, vpc: str, items: list[Publication]) -> tuple[Publication, ...]:
        """`items` with ports in the router: those that they have at present, and free ones for the others."""
        home = self._present.vpcs_by_name.get(vpc)
        present = {item.place: item for item in (home.publications if home else ())}
        placed_items = [
            dataclasses.replace(item, entry=present[item.place].entry) for item in items if item.place in present
        ]
        for item in items:
            if item.place not in present:
                with contextlib.suppress(ConflictError):
                    placed_items.append(placed(item, placed_items))
        known = {item.place: item for item in placed_items}
        return tuple(known.get(item.place, item) for item in items)

    def publication(self, document: dict[str, Any], place: str) -> Publication | None:
        """One publication, if it can be read."""
        spans = []
        for field in ("port", "target_port") if "target_port" in document else ("port",):
            span = self.attempt(f"{place}/{field}", fields.parse_port_range, document[field])
            if span is None:
                return None
            spans.append(span)
        (low, high), (target, target_end) = spans[0], spans[-1]
        if target_end - target != high - low:
            ranges = port_range(target, target_end - target + 1), port_range(low, high - low + 1)
            words = f"{ranges[0]} is not as long as port {ranges[1]}; use ranges of one length"
            self.problems.append(Problem(self.file, f"{place}/target_port", words))
            return None
        address = None
        if "address" in document:
            address = self.attempt(f"{place}/address", fields.parse_address, document["address"])
            if address is None:
                return None
        parts = (PROTOCOLS[document["protocol"]], low, document["instance"], target, high - low + 1, address)
        return self.guarded(f"{place}/address", Publication, *parts)

    def prefix(self, document: dict[str, Any], pointer: str) -> Network | None:
        """The prefix of a VPC or a subnet, if it can be read."""
        if "cidr" not in document:
            return None
        return self.attempt(f"{pointer}/cidr", fields.parse_own_prefix, document["cidr"])

    def subnet(self, document: dict[str, Any], pointer: str, vpc: str) -> Subnet | None:
        prefix, name = self.prefix(document, pointer), document.get("name", "")
        named = name and self.guarded(f"{pointer}/name", _is_so, names.check_name, name, "subnet")
        policy = self.policy_of(document, pointer)
        wanted, addresses = self.instances(document, pointer)
        if prefix is None or not named:
            return None
        public, gateway = document.get("type") == "public", document.get("nat_gateway", False)
        made = self.guarded(f"{pointer}/cidr", Subnet, name, (prefix,), public, gateway, (), policy)
        return made and self.populated(made, vpc, wanted, addresses)

    def instances(self, document: dict[str, Any], pointer: str) -> tuple[dict[str, str], dict[str, Address]]:
        """A subnet's instances by place, without those that are wrong by themselves: names, and given addresses."""
        wanted: dict[str, str] = {}
        addresses: dict[str, Address] = {}
        for inner, place in _instances(document, pointer):
            told = len(self.problems)
            if place != pointer and "name" in inner:
                self.guarded(f"{place}/name", names.check_name, inner["name"], "instance")
            address = self.attempt(f"{place}/ip", fields.parse_address, inner["ip"]) if "ip" in inner else None
            if len(self.problems) == told and "name" in inner:
                wanted[place] = inner["name"]
                if address is not None:
                    addresses[place] = address
        return wanted, addresses

    def populated(self, subnet: Subnet, vpc: str, wanted: dict[str, str], given: dict[str, Address]) -> Subnet:
        """`subnet` with its instances: those with a given or a known address first, so that none is taken from them."""
        known = self.known(subnet, vpc)
        # What is released by this very document is not handed out by it either.
        before = next(iter(self.beside(subnet, vpc)), subnet)
        left = tuple(one for name, one in known.items() if name in wanted.values())
        subnet = dataclasses.replace(subnet, released=before.with_instances(left).released)
        addresses = {place: known[name].addresses[0] for place, name in wanted.items() if name in known} | given
        made = subnet
        for place in sorted(wanted, key=lambda place: place not in addresses):
            name, address = wanted[place], addresses.get(place)
            kept = known.get(name)
            if kept is not None and kept.addresses == (address,):
                made = self.guarded(place, _joined_by, made, kept) or made
            else:
                exact = f"{place}/ip" if place in given else place
                made = self.guarded(exact, with_instance, made, vpc, name, address, self._serial) or made
        order = {name: number for number, name in enumerate(wanted.values())}
        instances = tuple(sorted(made.instances, key=lambda one: order[one.name]))
        return dataclasses.replace(made, instances=instances, released=before.with_instances(instances).released)

    def known(self, subnet: Subnet, vpc: str) -> dict[str, Instance]:
        """The instances that the same subnet has in the present world, by name."""
        return {one.name: one for beside in self.beside(subnet, vpc) for one in beside.instances}

    def beside(self, subnet: Subnet, vpc: str) -> list[Subnet]:
        """The same subnet as it is in the present world, if it is there."""
        home = self._present.vpcs_by_name.get(vpc)
        beside = home and home.subnets_by_name.get(subnet.name)
        return [beside] if beside and beside.prefixes == subnet.prefixes else []

    def attached(self, policy: Any, pointer: str, whole: bool) -> Policy:
        vpc = "/".join(pointer.split("/")[:3])
        if not isinstance(policy, str):
            reader = Reader(self.file)
            read = reader.policy(policy, f"{pointer}/policy", {})
            self._endpoints.append((vpc, f"{pointer}/policy", self.file, reader.named))
            reader.finish()
            _check_aim(read, whole)
            return read.policy
        try:
            document, file = self._load(policy)
            found = read_policy_file(document, file)
            if len(found.documents) == 1:
                self._noted(found.documents[0], vpc, f"{pointer}/policy")
            if found.problems:
                raise DocumentError(*found.problems)
            if len(found.documents) != 1:
                raise DocumentError(Problem(file, "", "", "one policy is expected here"))
            _check_aim(found.documents[0], whole)
        except DocumentError as error:
            raise self.discreet(error) from error
        return found.documents[0].policy

    def _noted(self, found: PolicyDocument, vpc: str, place: str) -> None:
        """Keep what is needed to judge the names in the policy of a file, which is for the subnet of `place`."""
        self._endpoints.append((vpc, place, found.policy.file, list(found.named)))
        self._file_sets[place] = None if "sets" in found.unread else [name for name, _ in found.policy.sets]

    def discreet(self, error: DocumentError) -> DocumentError:
        """The problems with a file that this document names, without any content of the file.

        The author of the document may not be allowed to read that file.
        """
        files = dict.fromkeys(problem.file for problem in error.problems if isinstance(problem, Problem))
        told = [
            problem.discreet() if isinstance(problem, Problem) else problem
            for problem in error.problems
            if problem not in EXAMPLE
        ]
        hints = (_not_shown(file, self.file) for file in files)
        return DocumentError(*told, *(hint for hint in hints if hint not in self.problems))


def _check_aim(found: PolicyDocument, whole: bool) -> None:
    """Raise DocumentError for a VPC's own policy in the place of a subnet's, and the other way round."""
    if whole and found.subnet not in (None, WHOLE_VPC):
        expected = 'this is the place of the VPC\'s own policy ("subnet": "*"); that of a subnet is in "subnets"'
    elif not whole and found.subnet == WHOLE_VPC:
        expected = "this is the place of a subnet's policy; the VPC's own is in the field \"policy\" of the VPC"
    else:
        return
    place = f"{found.policy.pointer}/subnet"
    raise DocumentError(Problem(found.policy.file, place, expected, expected, place))


def _not_shown(file: str, document: str) -> Problem:
    command = f"vpcctl apply-policy --dry-run {shlex.quote(file)}"
    words = f"its content is not shown, because {document} names it; to see what was found, use `{command}`"
    return Problem(file, "", words)


def _instances(subnet: dict[str, Any], pointer: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The instances of a subnet's document with their places; where it is silent, the one of the subnet's name."""
    if "instances" not in subnet and "name" in subnet:
        yield {"name": subnet["name"]}, pointer
    for number, instance in sound(subnet.get("instances", [])):
        yield instance, f"{pointer}/instances/{number}"


def _is_so(check: Callable[..., object], *arguments: Any) -> bool:
    """True where `check` raises nothing."""
    check(*arguments)
    return True


def _peered(world: World, pair: Peering) -> World:
    return dataclasses.replace(world, peerings=(*world.peerings, pair))


def _joined_by(subnet: Subnet, instance: Instance) -> Subnet:
    return subnet.with_instances((*subnet.instances, instance))
