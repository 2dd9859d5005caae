"""Commands on VPCs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import print_json, show
from vpcctl.cli.session import ONE_VPC, PREFIX, About, Session, command, json_option
from vpcctl.cli.subnet_commands import subnet_document, subnet_type

if TYPE_CHECKING:
    from vpcctl.engine.controller import Controller
    from vpcctl.engine.inventory import Created, VpcView
    from vpcctl.engine.reconciler import Outcome

FLOWS = "Limit of the flows that the host tracks for the VPC (approximate, for each direction)."
PORTS = "Limit of the NAT ports that the VPC can use toward one remote service."
PROTOCOL = "A protocol without ports: gre, esp, ah, ipip, or a number."
# As `model` has them; it is imported when a command runs.
DEFAULT_MAX_FLOWS, DEFAULT_MAX_PORTS = 16384, 8192


@command(about=About("name", only=False), changes=True)
@click.option("--name", help="Its name.")
@click.option("--cidr", required=True, type=PREFIX, help="Its prefix, such as 10.0.0.0/16.")
@click.option("--ipv6-cidr", help="Not supported yet: IPv6 is off and dropped in every VPC.")
@click.option(
    "--transit",
    type=PREFIX,
    help="The range of the uplinks' addresses; can be set only with the first VPC. [100.64.0.0/16]",
)
@click.option("--hardened", is_flag=True, help="Complete all checksums before packets are judged; costs throughput.")
@click.option("--closed", is_flag=True, help="Deny all traffic until a policy allows it.")
@click.option("--mtu", type=int, help="The MTU of all its links. [that of the host's way out, at most 1500]")
@click.option("--max-flows", type=int, default=DEFAULT_MAX_FLOWS, show_default=True, help=FLOWS)
@click.option("--max-ports", type=int, default=DEFAULT_MAX_PORTS, show_default=True, help=PORTS)
@click.pass_obj
def create_vpc(
    session: Session,
    name: str,
    cidr: Any,
    ipv6_cidr: str | None,
    transit: Any,
    max_flows: int,
    max_ports: int,
    hardened: bool,
    closed: bool,
    mtu: int | None,
) -> None:
    """Create a VPC with its router, uplink and default-deny ruleset.

    With --closed it begins with a policy of its own that denies all traffic: policies of its subnets, or another policy
    of the VPC, then allow what is needed.

    Example: vpcctl create-vpc --name shop --cidr 10.0.0.0/16
    """
    from vpcctl import doctor

    if ipv6_cidr is not None:
        raise click.UsageError("--ipv6-cidr: IPv6 prefixes are not supported yet; create the VPC without one")

    def create(controller: Controller) -> Created[VpcView]:
        created = controller.create_vpc(
            name,
            cidr,
            transit=transit,
            max_flows=max_flows,
            max_ports=max_ports,
            hardened=hardened,
            mtu=mtu,
            closed=closed,
        )
        return created.warned(map(str, doctor.pressing_findings(created.outcome.after, name)))

    how = "; no traffic passes until a policy allows it" if closed else ""
    session.carry_out(
        create,
        lambda created: [f"created VPC {name} ({cidr}), router namespace {created.made.router}{how}"],
        lambda created: {"created": vpc_document(created.made)},
    )


@command(about=About("name", only=False), removes=True)
@click.option("--name", help="Its name.")
@click.option("--cascade", is_flag=True, help="Also delete its subnets, instances and peerings.")
@click.pass_obj
def delete_vpc(session: Session, name: str, cascade: bool) -> None:
    """Delete a VPC.

    Example: vpcctl delete-vpc --name shop --cascade
    """
    from vpcctl.cli.change_reports import Question, carry_out

    carry_out(
        session,
        lambda controller: controller.delete_vpc(name, cascade=cascade),
        lambda _: [f"deleted VPC {name}"],
        Question(f"Delete VPC {name}?"),
    )


@command(about=ONE_VPC, changes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--max-flows", type=int, help=FLOWS)
@click.option("--max-ports", type=int, help=PORTS)
@click.pass_obj
def set_limits(session: Session, vpc: str, max_flows: int | None, max_ports: int | None) -> None:
    """Change a VPC's limits for shared resources; live flows continue.

    Example: vpcctl set-limits --vpc shop --max-flows 50000
    """
    if max_flows is None and max_ports is None:
        raise click.UsageError("pass --max-flows, --max-ports or both")

    def told(outcome: Outcome) -> list[str]:
        found = outcome.after.vpc(vpc)
        flows = f"about {found.max_flows} flows in each direction"
        return [f"VPC {vpc}: limited to {flows} and to {found.max_ports} NAT ports toward one remote service"]

    session.carry_out(lambda controller: controller.set_limits(vpc, max_flows=max_flows, max_ports=max_ports), told)


@command(about=ONE_VPC, changes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--protocol", required=True, help=PROTOCOL)
@click.pass_obj
def create_nat_protocol(session: Session, vpc: str, protocol: str) -> None:
    """Enable source NAT of a protocol without ports for a VPC; only one VPC at a time can use it.

    Example: vpcctl create-nat-protocol --vpc shop --protocol gre
    """
    number = _portless(protocol)
    words = f"source NAT now translates protocol {protocol}; the host's own {protocol} takes precedence"
    session.carry_out(lambda controller: controller.create_nat_protocol(vpc, number), lambda _: [f"VPC {vpc}: {words}"])


@command(about=ONE_VPC, removes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--protocol", required=True, help=PROTOCOL)
@click.pass_obj
def delete_nat_protocol(session: Session, vpc: str, protocol: str) -> None:
    """Disable source NAT of a protocol without ports for a VPC; its live flows end.

    Example: vpcctl delete-nat-protocol --vpc shop --protocol gre
    """
    from vpcctl.cli.change_reports import Question, carry_out

    number = _portless(protocol)
    carry_out(
        session,
        lambda controller: controller.delete_nat_protocol(vpc, number),
        lambda _: [f"VPC {vpc}: protocol {protocol} is no longer translated and cannot reach the internet"],
        Question(f"Stop translating protocol {protocol} for VPC {vpc}?"),
    )


def _portless(protocol: str) -> int:
    from vpcctl.documents.fields import parse_portless

    try:
        return parse_portless(protocol)
    except ValueError as error:
        raise click.UsageError(f"--protocol: {error}") from error


@command()
@json_option
@click.pass_obj
def list_vpcs(session: Session, as_json: bool) -> None:
    """List the VPCs.

    Example: vpcctl list-vpcs --json
    """
    vpcs = session.controller.list_vpcs()
    if as_json:
        return print_json([vpc_document(vpc) for vpc in vpcs])
    rows = [(vpc.name, vpc.prefix, len(vpc.subnets), len(vpc.instances), " ".join(vpc.peers) or "-") for vpc in vpcs]
    return session.print_table(("VPC", "CIDR", "SUBNETS", "INSTANCES", "PEERS"), rows, "no VPCs")


@command(about=About("name"))
@click.option("--name", help="Its name.")
@json_option
@click.pass_obj
def show_vpc(session: Session, name: str, as_json: bool) -> None:
    """Show a VPC and everything in it.

    Example: vpcctl show-vpc --name shop
    """
    vpc = session.controller.show_vpc(name)
    if as_json:
        return print_json(vpc_document(vpc))
    show(f"VPC {name}  {vpc.prefix}{'  hardened' if vpc.hardened else ''}")
    show(f"  router   {vpc.router}, uplink {vpc.uplink.address}")
    show(f"  MTU      {vpc.mtu}")
    show(f"  peers    {', '.join(vpc.peers) or '-'}")
    show(f"  limits   {vpc.max_flows} flows, {vpc.max_ports} NAT ports toward one remote service")
    if vpc.nat_protocols:
        show(f"  translated protocols  {', '.join(map(str, vpc.nat_protocols))}")
    show(f"  policy   {vpc.policy_file or '-'}")
    lines = []
    for subnet in vpc.subnets:
        way = subnet_type(subnet) + (", NAT gateway" if subnet.nat_gateway else "")
        lines.append(f"  subnet {subnet.name}  {subnet.prefix}  {way}, policy: {'yes' if subnet.policy_file else 'no'}")
        lines += (f"    instance {one.name}  {one.address}  namespace {one.namespace}" for one in subnet.instances)
    published = []
    for item in vpc.publications:
        published.append(f"  published {item.service} to {item.instance}:{item.target.partition('/')[2]}")
    return show(*session.listing(lines), *session.listing(published))


def vpc_document(vpc: VpcView) -> dict[str, Any]:
    """A VPC for machines."""
    from vpcctl.documents.diff import publication_document

    uplink = vpc.uplink
    return {
        "name": vpc.name,
        "cidr": str(vpc.prefix),
        "hardened": vpc.hardened,
        "mtu": vpc.mtu,
        "router": vpc.router,
        "uplink": {"link": uplink.link, "host_address": str(uplink.host_address), "address": str(uplink.address)},
        "peers": list(vpc.peers),
        "max_flows": vpc.max_flows,
        "max_ports": vpc.max_ports,
        "nat_protocols": list(vpc.nat_protocols),
        "policy": vpc.policy_file,
        "subnets": [subnet_document(subnet) for subnet in vpc.subnets],
        "publish": list(map(publication_document, vpc.publications)),
    }
