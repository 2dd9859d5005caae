"""What stands for the internet where vpcctl runs: the lab's pretend one, or whatever is behind the host's way out."""

from __future__ import annotations

import ipaddress
import os
import socket

from vpcctl.engine.traffic import StandIn
from vpcctl.errors import ConflictError, KernelError
from vpcctl.kernel.probe import Outside
from vpcctl.lab import HOST, INTERNET, LAN, RUN_LAB
from vpcctl.model.oracle import Flow


def stand_in() -> StandIn:
    """The internet for probes: on a real host an address of TEST-NET-3 (RFC 5737), which belongs to nobody."""
    return StandIn(INTERNET, outside)


def outside(flow: Flow) -> Outside:
    """Where the outside end of `flow` sends, or is looked for.

    A packet to the outside is seen as it leaves the host, by whatever link: its receiver may be anybody's machine.
    One from the outside has to be sent by a machine there; the lab has some.  ConflictError where none is to be had,
    KernelError where the host has no way out.
    """
    if flow.source.vpc is not None:
        return _way_out()
    if "VPCCTL_LAB" not in os.environ or not (RUN_LAB / "internet").exists():
        raise ConflictError(
            f"cannot probe a flow from outside: this host cannot send as {flow.source.address}; try the port from"
            " another machine"
        )
    station = "neighbour" if flow.source.address in LAN else "internet"
    return Outside(RUN_LAB / station, HOST)


def _way_out() -> Outside:
    """The host, with the address that it has on its way to the internet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((str(INTERNET), 9))  # asks for the route; nothing is sent
        except OSError as error:
            raise KernelError(
                "the host has no way to the internet, so there is nothing to probe", str(error)
            ) from error
        return Outside(None, ipaddress.IPv4Address(way.getsockname()[0]), leaving=True)
