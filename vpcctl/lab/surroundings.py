"""What stands for the internet where vpcctl runs: the lab's machines, or whatever the host sends its packets to."""

from __future__ import annotations

import os

from vpcctl.engine.traffic import StandIn
from vpcctl.errors import ConflictError
from vpcctl.kernel.probe import HERE, Outside
from vpcctl.lab import HOST, INTERNET, LAN, RUN_LAB
from vpcctl.model.oracle import Flow


def stand_in() -> StandIn:
    """The internet for probes: on a real host an address of TEST-NET-3 (RFC 5737), which belongs to nobody."""
    return StandIn(INTERNET, outside)


def outside(flow: Flow) -> Outside:
    """Where the outside end of `flow` sends, or is looked for.

    A packet to the outside is seen as it leaves the host, by whatever link: its receiver may be anybody's machine.
    One from the outside has to be sent by a machine there; the lab has some.  ConflictError where none is to be had.
    """
    if flow.source.vpc is not None:
        return HERE
    if "VPCCTL_LAB" not in os.environ or not (RUN_LAB / "internet").exists():
        raise ConflictError(
            f"cannot probe a flow from outside: this host cannot send as {flow.source.address}; try the port from"
            " another machine"
        )
    station = "neighbour" if flow.source.address in LAN else "internet"
    return Outside(RUN_LAB / station, HOST)
