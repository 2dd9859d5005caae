"""Pictures of the network."""

from __future__ import annotations

from pathlib import PurePath
from typing import TextIO

import click

from vpcctl.cli.session import Session, command
from vpcctl.cli.traffic_commands import environment_option

# The formats, each with the endings of its files.
FORMATS = {"svg": (".svg",), "dot": (".dot", ".gv"), "mermaid": (".mmd", ".mermaid")}


@command()
@click.argument("vpc", required=False, metavar="[VPC]")
@click.option(
    "--format", "form", type=click.Choice(list(FORMATS)),
    help="Text for Mermaid or Graphviz, or an image.  Default: by the name of the file, else mermaid.",
)  # fmt: skip
@click.option("--output", type=click.File("w", lazy=True, atomic=True), default="-", help="Write this file.")
@environment_option
@click.pass_obj
def graph(session: Session, vpc: str | None, form: str | None, output: TextIO, environment: str | None) -> None:
    """Draw the network: VPCs, subnets, instances, peerings, published ports and ways out.

    With VPC only this one, and the routers of its peers.  An image needs Graphviz.

    Example: vpcctl graph --output network.svg
    """
    from vpcctl.analysis.graph import dot, mermaid

    found = session.controller.graph(vpc, environment=environment)
    ending = PurePath(output.name).suffix
    chosen = form or next((name for name, endings in FORMATS.items() if ending in endings), "mermaid")
    if chosen == "svg":
        from vpcctl.kernel.graphviz import svg

        text = svg(dot(found))
    else:
        text = mermaid(found) if chosen == "mermaid" else dot(found)
    output.write(text)
