"""Requests about rulesets: the one that a VPC would have, and the one that the kernel has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from vpcctl import names
from vpcctl.engine.machine import Machine
from vpcctl.errors import AmbiguousError, VpcctlError
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.documents.sources import Source
    from vpcctl.engine.state import Record

Found = TypeVar("Found", str, list[dict[str, Any]])


@dataclass(frozen=True, slots=True)
class CompiledRuleset:
    """The ruleset of a VPC, as `nft -f` takes it."""

    vpc: str
    text: str
    warnings: tuple[str, ...] = ()


def compile_ruleset(
    machine: Machine, sources: Iterable[Source], vpc: str | None, subnet: str | None, environment: Source | None
) -> CompiledRuleset:
    """The ruleset of a VPC with the given policies; AmbiguousError if it may be one of several VPCs'.

    With `environment` it is compiled for that document, else for the present world.
    """
    from vpcctl.compiler import bounds, compile_vpc
    from vpcctl.documents.binding import attach, sound_policies
    from vpcctl.documents.sources import read_environment_source, read_policy_sources
    from vpcctl.model.network import World
    from vpcctl.resources.kinds import Ruleset, next_generation
    from vpcctl.resources.topology import Recorded

    def present() -> World:
        return machine.load().world if environment is None else read_environment_source(environment)

    documents = sound_policies(read_policy_sources(sources), present, vpc, subnet)
    record: Record = {}
    if environment is not None:
        before, world, owner = World(), present(), "environment"
    else:
        state = machine.load()
        before, world, owner = state.world, state.world, state.state_id
        record = state.record
    world, attachments, warnings = attach(world, documents, vpc, subnet)
    concerned = {vpc} if vpc else {found.vpc for found in attachments} or {one.name for one in world.vpcs}
    if len(concerned) != 1:
        raise AmbiguousError("a ruleset is one VPC's; name it with --vpc", concerned)
    name = world.vpc(concerned.pop()).name
    bounds.check(before, world)
    compiled = compile_vpc(world, name, names.tag(owner, name, "ruleset"))
    recorded = Recorded(record).get((Ruleset.__name__, names.router_namespace(name)))
    return CompiledRuleset(name, compiled.text(next_generation(recorded, compiled.fingerprint)), tuple(warnings))


def loaded_text(machine: Machine, vpc: str) -> str:
    """The ruleset of a VPC as ``nft list`` prints it; VpcctlError if none is loaded."""
    from vpcctl.resources.topology import VPC_FAMILIES

    namespace = names.router_namespace(machine.load().world.vpc(vpc).name)
    with machine.kernel() as kernel:
        return _loaded(kernel.ruleset_listing(namespace, VPC_FAMILIES), namespace)


def loaded_objects(machine: Machine, vpc: str) -> list[dict[str, Any]]:
    """Likewise as the JSON objects of libnftables-json(5)."""
    namespace = names.router_namespace(machine.load().world.vpc(vpc).name)
    with machine.kernel() as kernel:
        return _loaded(kernel.ruleset_objects(namespace), namespace)


def _loaded(ruleset: Found, namespace: str) -> Found:
    if not ruleset:
        raise VpcctlError(f"no ruleset is loaded in {namespace}; `vpcctl repair` loads it")
    return ruleset
