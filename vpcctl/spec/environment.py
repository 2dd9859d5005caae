"""What people write as environments, read: VPCs and all that is in them, and the peerings between them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from vpcctl import documents, names
from vpcctl.errors import DocumentError, Problem, VpcctlError
from vpcctl.model import Instance, Peering, Publication, Subnet, Vpc, World
from vpcctl.policy import PROTOCOLS, Policy
from vpcctl.remains import GAP, remains
from vpcctl.spec import fields
from vpcctl.spec.policies import Reader, read_policies, read_policy, sound

ANY_PREFIX = "0.0.0.0/0"


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


class _Environment(Reader):
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
        for number, vpc in sound([] if document is GAP else document.get("vpcs", [])):
            place = f"/vpcs/{number}"
            self.attempt(f"{place}/cidr", fields.parse_own_prefix, vpc.get("cidr", ANY_PREFIX))
            self.sets(vpc.get("sets", {}), f"{place}/sets")
            for inner, subnet in sound(vpc.get("subnets", [])):
                self.words_of(subnet, f"{place}/subnets/{inner}")

    def words_of(self, subnet: dict, pointer: str) -> None:
        self.attempt(f"{pointer}/cidr", fields.parse_own_prefix, subnet.get("cidr", ANY_PREFIX))
        self.policy_of(subnet, pointer)
        for number, instance in sound(subnet.get("instances", [])):
            if "ip" in instance:
                self.attempt(f"{pointer}/instances/{number}/ip", fields.parse_address, instance["ip"])

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
        prefix = self.attempt(f"{pointer}/cidr", fields.parse_own_prefix, document["cidr"])
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
        prefix = self.attempt(f"{pointer}/cidr", fields.parse_own_prefix, document["cidr"])
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
                addresses[number] = self.attempt(f"{places[number]}/ip", fields.parse_address, inner["ip"])
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
