"""All requests of the front ends: the command line, programs in Python, and future ones.

A request is one method: values in, values out.  It takes no words of a command line, prints nothing, and raises errors
of `vpcctl.errors` alone, before anything was changed or with what was changed rolled back.  What a person may want to
know meanwhile goes to `report`.  Heavy modules are imported by the request that needs them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from vpcctl.engine import machine as machines
from vpcctl.engine.events import Report, unheard
from vpcctl.engine.machine import NOBODY, Author, Machine, state_directory

if TYPE_CHECKING:
    from vpcctl.analysis.graph import Graph
    from vpcctl.analysis.impact import Forecast
    from vpcctl.analysis.invariants import Judged
    from vpcctl.documents.sources import Source
    from vpcctl.engine.attachments import PolicyChange, PolicyView
    from vpcctl.engine.environments import EnvironmentApplied, EnvironmentPlan
    from vpcctl.engine.flows import FlowEvents, LiveFlows
    from vpcctl.engine.inventory import Created, Dwelling, InstanceView, PublishedPort, SubnetView, VpcView
    from vpcctl.engine.machine import Transform
    from vpcctl.engine.made_changes import ChangeView, KeptChange, UndoPlan
    from vpcctl.engine.reconciler import Outcome
    from vpcctl.engine.rulesets import CompiledRuleset
    from vpcctl.engine.state import Store, Unconfirmed
    from vpcctl.engine.traffic import (
        Explanation,
        FlowLog,
        Probed,
        ProbedAssertion,
        StandIn,
        TrafficMatrix,
        Verification,
    )
    from vpcctl.engine.upkeep import Comparison, Repair, Tended
    from vpcctl.engine.watched import Watched
    from vpcctl.model.host import Host
    from vpcctl.model.network import Invariant, Peering, Publication
    from vpcctl.model.policy import Address, Network
    from vpcctl.resources.protocol import Kernel


class Controller:
    """The VPCs of one machine.

    `state_dir` is the directory of the record: by default that of the command line (VPCCTL_STATE_DIR, else
    DEFAULT_STATE_DIR of `names`).  Nothing is opened or locked between two requests, so one controller may live as long
    as its program, beside commands that a user types.  With `override_invariants` its changes may break invariants, and
    each that is broken is reported.  The history keeps changes as those of `author`.

    A controller that is `rehearsing` changes nothing: each change is planned, checked against the record and the
    kernel, refused where it would be refused, and its result returned as if it were made.
    """

    def __init__(
        self,
        state_dir: str | os.PathLike[str] | None = None,
        *,
        report: Report = unheard,
        store: Store | None = None,
        make_kernel: Callable[[], Kernel] | None = None,
        read_host: Callable[[], Host] | None = None,
        override_invariants: bool = False,
        rehearsing: bool = False,
        author: Author = NOBODY,
    ):
        if store is None:
            from vpcctl.engine import state

            store = state.Store(state_directory(state_dir), state.COPIES)
        kernel, host = make_kernel or machines.linux_kernel, read_host or machines.linux_host
        leaves = make_kernel is None
        self._machine = Machine(store, kernel, host, report, override_invariants, rehearsing, author, leaves)

    def check_privilege(self) -> None:
        """Raise PrivilegeError if the kernel may not be changed."""
        with self._machine.kernel():
            pass

    def change(self, transform: Transform) -> Outcome:
        """Change the world to what `transform` makes of the present state: the way of every other change."""
        return self._machine.change(transform)

    def host(self) -> Host:
        """The host's own addresses now."""
        return self._machine.host()[0]

    def forecast(self, outcome: Outcome, *, quick: bool = False, host: Host | None = None) -> Forecast:
        """What a change means for traffic: newly allowed, newly denied; `quick` lists less rather than take long.

        `host` has the addresses from before the change, which gives uplinks to the host or takes them; None: as they
        are now.
        """
        from vpcctl.engine import traffic

        return traffic.forecast(outcome.before, outcome.after, self.host() if host is None else host, quick)

    # -- VPCs ----------------------------------------------------------------------------------------------------

    def create_vpc(
        self,
        name: str,
        prefix: Network | str,
        *,
        transit: Network | str | None = None,
        max_flows: int | None = None,
        max_ports: int | None = None,
        hardened: bool = False,
        mtu: int | None = None,
        closed: bool = False,
    ) -> Created[VpcView]:
        """Create a VPC: its router, its ruleset, its uplink.

        Without `mtu` its links get the MTU of the host's way out, at most 1500.  With `closed` its own policy denies
        all traffic: nothing passes until a policy allows it.
        """
        from vpcctl.engine import arguments
        from vpcctl.engine.inventory import Created, vpc_view
        from vpcctl.model import network, operations

        own = arguments.prefix(prefix)
        range_ = None if transit is None else arguments.prefix(transit)
        flows = network.DEFAULT_MAX_FLOWS if max_flows is None else max_flows
        ports = network.DEFAULT_MAX_PORTS if max_ports is None else max_ports
        outcome = self.change(
            lambda state: operations.create_vpc(state.world, name, own, range_, flows, ports, hardened, mtu, closed)
        )
        return Created(vpc_view(outcome.after, name), outcome)

    def delete_vpc(self, name: str, *, cascade: bool = False) -> Outcome:
        """Delete a VPC; with `cascade` also its subnets, instances and peerings."""
        from vpcctl.model import operations

        return self.change(lambda state: operations.delete_vpc(state.world, name, cascade))

    def set_limits(self, vpc: str, *, max_flows: int | None = None, max_ports: int | None = None) -> Outcome:
        """Limit a VPC's use of shared resources; None leaves a limit as it is."""
        from vpcctl.model import operations

        return self.change(lambda state: operations.set_limits(state.world, vpc, max_flows, max_ports))

    def create_nat_protocol(self, vpc: str, protocol: int | str) -> Outcome:
        """Have source NAT translate a protocol without ports for a VPC."""
        return self._set_nat_protocol(vpc, protocol, True)

    def delete_nat_protocol(self, vpc: str, protocol: int | str) -> Outcome:
        """Have source NAT no longer translate a protocol without ports for a VPC."""
        return self._set_nat_protocol(vpc, protocol, False)

    def _set_nat_protocol(self, vpc: str, protocol: int | str, present: bool) -> Outcome:
        from vpcctl.engine import arguments
        from vpcctl.model import operations

        number = arguments.portless(protocol)
        return self.change(lambda state: operations.set_nat_protocol(state.world, vpc, number, present))

    def list_vpcs(self) -> tuple[VpcView, ...]:
        """All VPCs."""
        from vpcctl.engine.inventory import vpc_view

        world = self._machine.load().world
        return tuple(vpc_view(world, vpc.name) for vpc in world.vpcs)

    def vpc_names(self) -> tuple[str, ...]:
        """The names of all VPCs; nothing else of them is read."""
        return tuple(vpc.name for vpc in self._machine.load().world.vpcs)

    def show_vpc(self, name: str) -> VpcView:
        """A VPC with everything in it."""
        from vpcctl.engine.inventory import vpc_view

        return vpc_view(self._machine.load().world, name)

    # -- subnets -------------------------------------------------------------------------------------------------

    def create_subnet(
        self, vpc: str, name: str, prefix: Network | str, *, public: bool, instance: bool = True
    ) -> Created[SubnetView]:
        """Create a subnet and, unless `instance` is false, in it an instance of the same name."""
        from vpcctl.engine import arguments
        from vpcctl.engine.inventory import Created, subnet_views
        from vpcctl.model import operations

        own = arguments.prefix(prefix)
        outcome = self.change(
            lambda state: operations.create_subnet(state.world, vpc, name, own, public, instance, state.serial)
        )
        return Created(subnet_views(outcome.after.vpc(vpc), name)[0], outcome)

    def delete_subnet(self, vpc: str, name: str, *, cascade: bool = False) -> Outcome:
        """Delete a subnet and the instance of its name; with `cascade` all its instances."""
        from vpcctl.model import operations

        return self.change(lambda state: operations.delete_subnet(state.world, vpc, name, cascade))

    def create_nat_gateway(self, vpc: str, subnet: str) -> Created[SubnetView]:
        """Give a private subnet a way out; its egress policy decides what may use it."""
        from vpcctl.engine import traffic
        from vpcctl.engine.inventory import Created, subnet_views
        from vpcctl.model import operations

        outcome = self.change(lambda state: operations.set_nat_gateway(state.world, vpc, subnet, True))
        closed = traffic.closed_way_out(self._machine, outcome.after, vpc, subnet)
        warning = f"the egress policy of subnet {subnet} denies everything to the internet ({closed})"
        return Created(subnet_views(outcome.after.vpc(vpc), subnet)[0], outcome, (warning,) if closed else ())

    def delete_nat_gateway(self, vpc: str, subnet: str) -> Outcome:
        """Take the way out of a private subnet."""
        from vpcctl.model import operations

        return self.change(lambda state: operations.set_nat_gateway(state.world, vpc, subnet, False))

    def list_subnets(self, vpc: str | None = None) -> tuple[SubnetView, ...]:
        """The subnets of a VPC, or of all."""
        from vpcctl.engine.inventory import chosen_vpcs, subnet_views

        world = self._machine.load().world
        return tuple(subnet for one in chosen_vpcs(world, vpc) for subnet in subnet_views(one))

    def show_subnet(self, vpc: str, name: str) -> SubnetView:
        """One subnet."""
        from vpcctl.engine.inventory import subnet_views

        return subnet_views(self._machine.load().world.vpc(vpc), name)[0]

    # -- instances -----------------------------------------------------------------------------------------------

    def create_instance(
        self, vpc: str, subnet: str, name: str, address: Address | str | None = None
    ) -> Created[InstanceView]:
        """Create an instance; without `address` it gets the lowest free one."""
        from vpcctl.engine import arguments
        from vpcctl.engine.inventory import Created, instance_view
        from vpcctl.model import operations

        own = arguments.address(address)
        outcome = self.change(
            lambda state: operations.create_instance(state.world, vpc, subnet, name, own, state.serial)
        )
        return Created(instance_view(outcome.after.vpc(vpc), name), outcome)

    def delete_instance(self, vpc: str, name: str) -> Outcome:
        """Delete an instance."""
        from vpcctl.model import operations

        return self.change(lambda state: operations.delete_instance(state.world, vpc, name))

    def list_instances(self, vpc: str | None = None, subnet: str | None = None) -> tuple[InstanceView, ...]:
        """The instances of a VPC, or of one of its subnets; without a VPC all, or those of all subnets of the name."""
        from vpcctl.engine.inventory import chosen_vpcs, subnet_views
        from vpcctl.errors import ConflictError

        vpcs = chosen_vpcs(self._machine.load().world, vpc)
        if vpc is None and subnet is not None:
            vpcs = tuple(one for one in vpcs if any(own.name == subnet for own in one.subnets))
            if not vpcs:
                raise ConflictError(f"subnet {subnet!r} not found in any VPC; `vpcctl list-subnets` lists all")
        subnets = (own for one in vpcs for own in subnet_views(one, subnet))
        return tuple(instance for own in subnets for instance in own.instances)

    def show_instance(self, vpc: str, name: str) -> InstanceView:
        """One instance."""
        from vpcctl.engine.inventory import instance_view

        return instance_view(self._machine.load().world.vpc(vpc), name)

    def find_dwelling(
        self, vpc: str, *, instance: str | None = None, subnet: str | None = None, name: str | None = None
    ) -> Dwelling:
        """Where a program of an instance runs; for a subnet in its own instance, else in its first one.

        `name` is an instance, else a subnet.
        """
        from vpcctl.engine.inventory import dwelling

        state = self._machine.load()
        if name is not None:
            known = state.world.vpc(vpc)
            subnets = {one.name for one in known.subnets}
            if name in known.instances_by_name or name not in subnets:
                instance = name
            else:
                subnet = name
        return dwelling(state.world, state.state_id, vpc, instance, subnet)

    def publish_port(
        self,
        vpc: str,
        instance: str,
        port: int | str | tuple[int, int],
        *,
        target_port: int | str | tuple[int, int] | None = None,
        protocol: str = "tcp",
        address: Address | str | None = None,
        force: bool = False,
    ) -> Created[Publication]:
        """Forward a port of the host, or a range, to an instance; the ingress policy of its subnet still decides.

        `address` is the one address of the host at which it is published, None for all.  ConflictError if a program
        of the host listens there, or a foreign rule translates it, unless `force` is given.
        """
        from vpcctl.engine import arguments, traffic
        from vpcctl.engine.inventory import Created
        from vpcctl.errors import DocumentError
        from vpcctl.model import operations
        from vpcctl.model.network import Publication, port_range

        first, last = arguments.ports(port)
        target, target_end = (first, last) if target_port is None else arguments.ports(target_port)
        if target_end - target != last - first:
            told = port_range(target, target_end - target + 1), port_range(first, last - first + 1)
            raise DocumentError(f"target port {told[0]} is not as long as port {told[1]}; use ranges of one length")
        own = arguments.address(address)
        asked = Publication(arguments.ported(protocol), first, instance, target, last - first + 1, own)
        outcome = self._machine.change(lambda state: operations.publish_port(state.world, vpc, asked), force)
        publication = outcome.after.vpc(vpc).publications[-1]
        warnings = traffic.publication_warnings(self._machine, outcome.after, vpc, publication)
        return Created(publication, outcome, warnings)

    def list_published_ports(self, vpc: str | None = None) -> tuple[PublishedPort, ...]:
        """The published ports of a VPC, or of all."""
        from vpcctl.engine.inventory import PublishedPort, chosen_vpcs

        world = self._machine.load().world
        return tuple(PublishedPort(one.name, item) for one in chosen_vpcs(world, vpc) for item in one.publications)

    def unpublish_port(
        self,
        vpc: str,
        port: int | str | tuple[int, int],
        *,
        protocol: str = "tcp",
        address: Address | str | None = None,
    ) -> Outcome:
        """Forward a port of the host, or a range, no longer, live connections included.

        `address` is needed only where the VPC publishes the port at several addresses.
        """
        from vpcctl.engine import arguments
        from vpcctl.model import operations

        number, (first, last), own = arguments.ported(protocol), arguments.ports(port), arguments.address(address)
        return self.change(
            lambda state: operations.unpublish_port(state.world, vpc, number, first, last - first + 1, own)
        )

    # -- peerings ------------------------------------------------------------------------------------------------

    def create_peering(self, one: str, other: str) -> Outcome:
        """Let two VPCs reach each other."""
        from vpcctl.model import operations

        return self.change(lambda state: operations.create_peering(state.world, one, other))

    def delete_peering(self, one: str, other: str) -> Outcome:
        """Separate two VPCs, live connections included."""
        from vpcctl.model import operations

        return self.change(lambda state: operations.delete_peering(state.world, one, other))

    def list_peerings(self) -> tuple[Peering, ...]:
        """All peerings."""
        return self._machine.load().world.peerings

    # -- policies and rulesets -----------------------------------------------------------------------------------

    def apply_policies(
        self, *sources: Source, vpc: str | None = None, subnet: str | None = None, dry_run: bool = False
    ) -> PolicyChange:
        """Attach policies, one atomic load for each VPC concerned; they hold for live connections on return.

        `vpc` and `subnet` win over what the documents say.  A dry run changes nothing.
        """
        from vpcctl.engine import attachments

        return attachments.apply_policies(self._machine, sources, vpc, subnet, dry_run)

    def clear_policy(self, vpc: str, subnet: str, *, dry_run: bool = False) -> PolicyChange:
        """Detach the policy of a subnet, or with ``*`` the VPC's own."""
        from vpcctl.engine import attachments

        return attachments.clear_policy(self._machine, vpc, subnet, dry_run)

    def show_policies(self, vpc: str, subnet: str | None = None, *, hits: bool = False) -> tuple[PolicyView, ...]:
        """The policies in force, with ``*`` for the VPC's own.

        With `hits` they come with how many flows each rule decided since the ruleset was loaded.
        """
        from vpcctl.engine import attachments

        return attachments.show_policies(self._machine, vpc, subnet, hits)

    def compile_ruleset(
        self, *sources: Source, vpc: str | None = None, subnet: str | None = None, environment: Source | None = None
    ) -> CompiledRuleset:
        """The ruleset of a VPC as `nft -f` takes it, for the present world or an environment document."""
        from vpcctl.engine import rulesets

        return rulesets.compile_ruleset(self._machine, sources, vpc, subnet, environment)

    def show_ruleset(self, vpc: str) -> str:
        """The ruleset of a VPC as the kernel has it now, as `nft list` prints it."""
        from vpcctl.engine import rulesets

        return rulesets.loaded_text(self._machine, vpc)

    def ruleset_objects(self, vpc: str) -> list[dict[str, Any]]:
        """Likewise as the JSON objects of libnftables-json(5)."""
        from vpcctl.engine import rulesets

        return rulesets.loaded_objects(self._machine, vpc)

    # -- whole environments --------------------------------------------------------------------------------------

    def plan(self, environment: Source, *, prune: bool = False) -> EnvironmentPlan:
        """What `apply` would change: objects, and traffic."""
        from vpcctl.engine import environments

        return environments.plan_environment(self._machine, environment, prune)

    def apply(self, environment: Source, *, prune: bool = False) -> EnvironmentApplied:
        """Make the VPCs that a document names as it says; with `prune` remove all others."""
        from vpcctl.engine import environments

        return environments.apply_environment(self._machine, environment, prune)

    def export(self, vpc: str | None = None) -> dict[str, Any]:
        """The present environment as a document; applying it changes nothing."""
        from vpcctl.documents.diff import exported

        return exported(self._machine.load().world, vpc)

    # -- the history ---------------------------------------------------------------------------------------------

    def history(self) -> tuple[KeptChange, ...]:
        """The changes that are kept, the oldest first."""
        from vpcctl.engine import made_changes

        return made_changes.listed(self._machine)

    def show_change(self, number: int) -> ChangeView:
        """What a change did: objects and traffic, and the VPCs concerned before and after it."""
        from vpcctl.engine import made_changes

        return made_changes.shown(self._machine, number)

    def plan_undo(self, to: int | None = None) -> UndoPlan:
        """What `undo` would change; changes nothing."""
        from vpcctl.engine import made_changes

        return made_changes.plan_undo(self._machine, to)

    def undo(self, planned: UndoPlan, reason: str = "") -> Outcome:
        """Carry out what was planned; ConflictError if somebody changed something since then.

        Live connections that the restored policies allow lose nothing.  The history keeps the `reason`.
        """
        from vpcctl.engine import made_changes

        return made_changes.undo(self._machine, planned, reason)

    def confirm(self) -> Unconfirmed:
        """Keep the change that waits to be confirmed; ConflictError if none does, or its time is over."""
        return self._machine.confirm()

    def unconfirmed(self) -> Unconfirmed | None:
        """The change that waits to be confirmed."""
        return self._machine.load().unconfirmed

    def read_assertions(self, source: Source) -> tuple[Invariant, ...]:
        """The assertions of a document, for `probe_assertions`; DocumentError if it is wrong."""
        from vpcctl.engine import traffic

        return traffic.read_assertions(source)

    def probe_assertions(self, assertions: Iterable[Invariant], stand_in: StandIn) -> tuple[ProbedAssertion, ...]:
        """Try assertions about the present world with real packets."""
        from vpcctl.engine import traffic

        return traffic.probe_assertions(self._machine, assertions, stand_in)

    # -- traffic -------------------------------------------------------------------------------------------------

    def explain(self, source: str, destination: str, service: str, *, environment: Source | None = None) -> Explanation:
        """May this flow pass, which line of which file decides, and by which hops?"""
        from vpcctl.engine import traffic

        return traffic.explain(self._machine, source, destination, service, environment)

    def probe(self, explanation: Explanation, stand_in: StandIn) -> tuple[Probed, ...]:
        """Try an answer about the present world with real packets."""
        from vpcctl.engine import traffic

        return traffic.probe(explanation, stand_in)

    def matrix(self, vpc: str | None = None, *, environment: Source | None = None) -> TrafficMatrix:
        """Who reaches whom in a VPC, on what; None is the only VPC, AmbiguousError if there are several."""
        from vpcctl.engine import traffic

        return traffic.matrix(self._machine, vpc, environment)

    def set_invariants(self, assertions: Source, vpc: str | None = None) -> Outcome:
        """State what every later change must keep, for a VPC or for the machine, in place of what was stated before."""
        from vpcctl.engine import traffic

        return traffic.set_invariants(self._machine, assertions, vpc)

    def clear_invariants(self, vpc: str | None = None) -> Outcome:
        """Remove the invariants of a VPC, or those of the machine."""
        from vpcctl.engine import traffic

        return traffic.clear_invariants(self._machine, vpc)

    def list_invariants(self, vpc: str | None = None) -> tuple[Judged, ...]:
        """All invariants, or those of a VPC, and whether they hold."""
        from vpcctl.engine import traffic

        return traffic.list_invariants(self._machine, vpc)

    def verify(self, assertions: Source | None = None, *, environment: Source | None = None) -> Verification:
        """Judge assertions about traffic: those of a document, or the invariants."""
        from vpcctl.engine import traffic

        return traffic.verify(self._machine, assertions, environment)

    def graph(self, vpc: str | None = None, *, environment: Source | None = None) -> Graph:
        """The network as a graph, or one VPC of it; `analysis.graph` has the texts of Graphviz and Mermaid."""
        from vpcctl.engine import traffic

        return traffic.graph(self._machine, vpc, environment)

    def log(self, vpc: str, lost: Callable[[], None] = lambda: None) -> FlowLog:
        """Follow what rules with `log` report, without end; `lost` is called when packets arrived too fast."""
        from vpcctl.engine import traffic

        return traffic.log(self._machine, vpc, lost)

    def flows(self, vpc: str | None = None, instance: str | None = None) -> LiveFlows:
        """The live connections of all VPCs, of one, or of one instance of it; iterate once, they are read meanwhile."""
        from vpcctl.engine import flows

        return flows.flows(self._machine, vpc, instance)

    def follow_flows(
        self, vpc: str | None = None, instance: str | None = None, lost: Callable[[str], None] = lambda vpc: None
    ) -> FlowEvents:
        """The connections that begin and end from now on, without end.

        `lost` is called with the name of a VPC in which more happened than could be read in time.
        """
        from vpcctl.engine import flows

        return flows.follow(self._machine, vpc, instance, lost)

    # -- the machine ---------------------------------------------------------------------------------------------

    def status(self, vpc: str | None = None) -> Comparison:
        """Compare what is desired with the kernel, object by object."""
        from vpcctl.engine import upkeep

        return upkeep.status(self._machine, vpc)

    def repair(self, vpc: str | None = None) -> Repair:
        """Bring the kernel to the desired state: after a crash, a reboot, or a flushed ruleset."""
        from vpcctl.engine import upkeep

        return upkeep.repair(self._machine, vpc, adopt=False)

    def adopt(self, vpc: str | None = None) -> Repair:
        """Take back a record that was lost or damaged, then repair."""
        from vpcctl.engine import upkeep

        return upkeep.repair(self._machine, vpc, adopt=True)

    def watched(self, before: Watched | None = None) -> Watched:
        """The namespaces and links in which a change concerns what is on record; `before` saves reading it again."""
        from vpcctl.engine import watched

        return watched.watched(self._machine.load(), before or watched.NOTHING)

    def tend(self, vpcs: Collection[str] | None, *, patience: float) -> Tended:
        """Repair these VPCs (None: all) and the host's part; LockedError after `patience` seconds."""
        from vpcctl.engine import upkeep

        return upkeep.tend(self._machine, vpcs, patience)

    def as_agent(self) -> AbstractContextManager[None]:
        """Be the one agent of the state directory; ConflictError if another one runs."""
        from vpcctl.engine import agent_lock

        return agent_lock.held(self._machine.store)

    def grant_read(self, group: str) -> bool:
        """Let a group read the record, now and after later changes; was that not so already?"""
        from vpcctl.engine import readers

        number, store = readers.group_id(group), self._machine.store
        changed = readers.reading_group(store) != group
        if not self._machine.rehearsing:
            readers.grant(store, number)
        return changed

    def revoke_read(self) -> bool:
        """Let nobody but its owner read the record; could a group read it?"""
        from vpcctl.engine import readers

        store = self._machine.store
        changed = readers.reading_group(store) is not None
        if not self._machine.rehearsing:
            readers.revoke(store)
        return changed

    def destroy(self) -> Outcome:
        """Remove everything that is ours, and nothing else."""
        from vpcctl.model.network import World

        return self.change(lambda state: World())
