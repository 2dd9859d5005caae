"""Commands on instances, the ports published for them, and running programs inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import print_json, show
from vpcctl.cli.session import ADDRESS, ANY_VPC, ONE_VPC, PORTS, About, Session, command, json_option

if TYPE_CHECKING:
    from vpcctl.engine.inventory import Created, InstanceView
    from vpcctl.engine.reconciler import Outcome
    from vpcctl.kernel.processes import Elsewhere
    from vpcctl.model.network import Publication

PROTOCOL = click.Choice(["tcp", "udp", "sctp"])
NAMED = 5  # a warning names at most this many namespaces


class VariableType(click.ParamType):  # type: ignore[type-arg] # generic in new versions of click alone
    """A variable of the environment with its value."""

    name = "variable"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        variable, sign, content = value.partition("=")
        if not variable or not sign:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return variable, content


VARIABLE = VariableType()


def _document(instance: InstanceView) -> dict[str, Any]:
    """An instance for machines."""
    from vpcctl.cli.subnet_commands import instance_document

    return instance_document(instance)


@command(about=About(part="name"), changes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--subnet", required=True, help="The subnet.")
@click.option("--name", help="The instance's name.")
@click.option("--ip", type=ADDRESS, help="Its address; default: the lowest free address.")
@click.pass_obj
def create_instance(session: Session, vpc: str, subnet: str, name: str, ip: Any) -> None:
    """Create an instance: a namespace with one interface in the subnet.

    Example: vpcctl create-instance --vpc shop --subnet web --name web-2
    """

    def told(created: Created[InstanceView]) -> list[str]:
        return [f"created instance {name} ({created.made.address}), namespace {created.made.namespace}"]

    session.carry_out(
        lambda controller: controller.create_instance(vpc, subnet, name, ip),
        told,
        lambda created: {"created": {**_document(created.made), "subnet": subnet, "vpc": vpc}},
    )


@command(about=About(part="name"), removes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--name", help="The instance's name.")
@click.pass_obj
def delete_instance(session: Session, vpc: str, name: str) -> None:
    """Delete an instance.

    Example: vpcctl delete-instance --vpc shop --name web-2
    """
    from vpcctl.cli.change_reports import Question, carry_out

    def ends(outcome: Outcome) -> str:
        return f"all traffic of {outcome.before.vpc(vpc).instance(name).addresses[0]} ends"

    carry_out(
        session,
        lambda controller: controller.delete_instance(vpc, name),
        lambda _: [f"deleted instance {name} of VPC {vpc}"],
        Question(f"Delete instance {name} of VPC {vpc}?", ends=ends),
    )


@command(about=About(part="subnet", required=False, part_required=False))
@click.option("--vpc", help="The VPC; default: all.")
@click.option("--subnet", help="Only those of this subnet.")
@json_option
@click.pass_obj
def list_instances(session: Session, vpc: str | None, subnet: str | None, as_json: bool) -> None:
    """List the instances of a VPC, or of all VPCs.

    Example: vpcctl list-instances --vpc shop --subnet web
    """
    instances = session.controller.list_instances(vpc, subnet)
    if as_json:
        return print_json([{**_document(one), "subnet": one.subnet, "vpc": one.vpc} for one in instances])
    headings, rows = ("INSTANCE", "SUBNET", "IP", "MAC", "NAMESPACE"), []
    for one in instances:
        row = (one.name, one.subnet, one.address, one.mac, one.namespace)
        rows.append(row if vpc else (one.vpc, *row))
    if vpc is None:
        return session.print_table(("VPC", *headings), rows, "no instances")
    return session.print_table(headings, rows, f"VPC {vpc} has no instance")


@command(about=About(part="name"))
@click.option("--vpc", help="The VPC.")
@click.option("--name", help="The instance's name.")
@json_option
@click.pass_obj
def show_instance(session: Session, vpc: str, name: str, as_json: bool) -> None:
    """Show an instance: its address, its namespace, and the ports published for it.

    Example: vpcctl show-instance shop/web
    """
    from vpcctl.documents.diff import publication_document

    instance = session.controller.show_instance(vpc, name)
    published = [one.publication for one in session.controller.list_published_ports(vpc)]
    own = [one for one in published if one.instance == name]
    if as_json:
        places = {"subnet": instance.subnet, "vpc": vpc}
        return print_json({**_document(instance), **places, "publish": list(map(publication_document, own))})
    show(f"instance {vpc}/{name}  {instance.address}  subnet {instance.subnet}")
    show(f"  namespace  {instance.namespace}")
    show(f"  MAC        {instance.mac}")
    return show(*(f"  published  {one.service} to port {one.target.partition('/')[2]}" for one in own))


@command(about=ANY_VPC)
@click.option("--vpc", help="The VPC; default: all.")
@json_option
@click.pass_obj
def list_published_ports(session: Session, vpc: str | None, as_json: bool) -> None:
    """List the published ports of a VPC, or of all VPCs.

    Example: vpcctl list-published-ports
    """
    from vpcctl.documents.diff import publication_document

    published = session.controller.list_published_ports(vpc)
    if as_json:
        return print_json([{**publication_document(one.publication), "vpc": one.vpc} for one in published])
    rows = []
    for one in published:
        item = one.publication
        rows.append((item.service, f"{one.vpc}/{item.instance}", item.target))
    empty = f"VPC {vpc} publishes no port" if vpc else "no published ports"
    return session.print_table(("PORT", "INSTANCE", "TARGET"), rows, empty)


@command(about=About(part="instance"), changes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--instance", help="The instance that serves.")
@click.option("--port", required=True, type=PORTS, metavar="PORT[-PORT]", help="The port of the host, or a range.")
@click.option(
    "--target-port",
    type=PORTS,
    metavar="PORT[-PORT]",
    help="The port of the instance, if it differs, or a range as long as --port.",
)
@click.option("--protocol", default="tcp", type=PROTOCOL, show_default=True)
@click.option("--address", type=ADDRESS, help="Only at this address of the host; default: all of its addresses.")
@click.option("--force", is_flag=True, help="Publish the port even if a program or a foreign rule uses it.")
@click.pass_obj
def publish_port(
    session: Session,
    vpc: str,
    instance: str,
    port: tuple[int, int],
    target_port: tuple[int, int] | None,
    protocol: str,
    address: Any,
    force: bool,
) -> None:
    """Forward a host port to an instance; the ingress policy of its subnet still applies.

    Example: vpcctl publish-port --vpc shop --instance web --port 8080 --target-port 80
    """

    def told(published: Created[Publication]) -> list[str]:
        ports = published.made.target.partition("/")[2]
        return [f"published {published.made.service} of the host for {vpc}/{instance} port {ports}"]

    session.carry_out(
        lambda controller: controller.publish_port(
            vpc, instance, port, target_port=target_port, protocol=protocol, address=address, force=force
        ),
        told,
    )


@command(about=ONE_VPC, removes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--port", required=True, type=PORTS, metavar="PORT[-PORT]", help="The port of the host, or the range.")
@click.option("--protocol", default="tcp", type=PROTOCOL, show_default=True)
@click.option("--address", type=ADDRESS, help="The address of the host, if the port was published with one.")
@click.pass_obj
def unpublish_port(session: Session, vpc: str, port: tuple[int, int], protocol: str, address: Any) -> None:
    """Unpublish a port; live connections end, too.

    Example: vpcctl unpublish-port --vpc shop --port 8080
    """
    from vpcctl.cli.change_reports import Question, carry_out

    def told(outcome: Outcome) -> list[str]:
        left = outcome.after.vpc(vpc).publications
        gone = (item for item in outcome.before.vpc(vpc).publications if item not in left)
        return [f"{item.service} of the host is unpublished" for item in gone]

    ports = f"{protocol}/{port[0]}" + (f"-{port[1]}" if port[1] != port[0] else "")
    carry_out(
        session,
        lambda controller: controller.unpublish_port(vpc, port, protocol=protocol, address=address),
        told,
        Question(f"Unpublish {ports} of VPC {vpc}?"),
    )


@command(
    "exec",
    about=About(part="instance", other="subnet"),
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--vpc", help="The VPC.")
@click.option("--subnet", help="A subnet: its instance of the same name, else its first instance.")
@click.option("--instance", help="The instance.")
@click.option("--user", help="Run the command as this user, without any capability.")
@click.option(
    "--env",
    "additions",
    multiple=True,
    type=VARIABLE,
    metavar="NAME=VALUE",
    help="Set an environment variable; can be repeated.",
)
@click.option(
    "--preserve-fds",
    "preserved",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also pass on descriptors 3 to 2+N; default: none.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec(
    session: Session,
    vpc: str,
    subnet: str | None,
    instance: str | None,
    user: str | None,
    additions: tuple[tuple[str, str], ...],
    preserved: int,
    command: tuple[str, ...],
    name: str | None = None,
) -> None:
    """Run a command inside an instance, and exit with its status.

    \b
    No shell is used: for pipes, run `sh -c '…'`.  A command that runs as root can
    leave the namespace and has root's terminal, keys and environment.  With --user
    it cannot leave, and gets its own terminal, keys and environment.

    VPC/NAME is an instance, else a subnet: its instance of the same name, else its
    first.  Options of exec stand before COMMAND.

    Example: vpcctl exec shop/web -- curl http://10.0.2.2/
    """
    from vpcctl.kernel import inside

    if subnet is not None and instance is not None:
        raise click.UsageError("name either --subnet or --instance")
    dwelling = session.controller.find_dwelling(vpc, instance=instance, subnet=subnet, name=name)
    if user:
        _warn_of_processes(session, user, inside.elsewhere(dwelling.namespace, user))
    inside.execute(dwelling.namespace, list(command), user, dict(additions), dwelling.tag, preserved)


def _warn_of_processes(session: Session, user: str, elsewhere: Elsewhere) -> None:
    places = [
        f"on the host (PID {one.process})"
        if one.host
        else f"in {f'namespace {one.namespace}' if one.namespace else 'an unnamed namespace'} (PID {one.process})"
        for one in elsewhere.presences
    ]
    if len(places) > NAMED:
        places[NAMED:] = [f"in {len(places) - NAMED} more namespaces"]
    if places:
        session.warn(
            f"user {user} also runs processes {', '.join(places)}: processes of one user can take each other's sockets,"
            " whatever the policies say; use one user for each instance"
        )
    if not elsewhere.complete:
        session.warn(f"too many processes to check them all; user {user} may run others outside the instance")
