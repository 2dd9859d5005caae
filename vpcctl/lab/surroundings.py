"""The substitute for the internet where vpcctl runs: the lab's machines, or the destinations of the host's packets."""

from __future__ import annotations

import os
from pathlib import Path

from vpcctl.engine.traffic import StandIn
from vpcctl.errors import ConflictError, KernelError
from vpcctl.kernel.namespaces import entered
from vpcctl.kernel.probe import HERE, Outside
from vpcctl.kernel.routes import Hop, next_hop, read_host
from vpcctl.lab import HOST, INTERNET, RUN_LAB
from vpcctl.model.oracle import Flow
from vpcctl.model.policy import Address

_INTERNET, _NEIGHBOUR = RUN_LAB / "internet", RUN_LAB / "neighbour"


def stand_in() -> StandIn:
    """The internet for probes: on a real host an address of TEST-NET-3 (RFC 5737), which no machine has."""
    return StandIn(INTERNET, outside)


def outside(flow: Flow) -> Outside:
    """Where the outside end of `flow` sends, or is looked for.

    A packet to the outside is observed when it leaves the host, on any link: its receiver may be a foreign machine.
    One from the outside has to be sent by a machine there; the lab has some.  ConflictError if no such
    machine exists, KernelError if the host has no route to the sender.
    """
    if flow.source.vpc is not None:
        return HERE
    address = flow.source.address
    if "VPCCTL_LAB" not in os.environ or not _INTERNET.exists():
        raise ConflictError(
            f"cannot probe a flow from outside: this host cannot send as {address}; try the port from another machine"
        )
    hop = next_hop(address)
    if hop is None:
        # No machine outside has this address, so it is forged in any case.
        return Outside(_NEIGHBOUR, HOST)
    return Outside(_sender(address, hop), hop.own)


def _sender(address: Address, hop: Hop) -> Path:
    """The machine of the lab that sends as `address`: the one to which the host sends the answers.

    From any other machine a packet may come by a link where its source cannot be, and be dropped (rp_filter); and its
    sender does not hear the answers.  On a LAN of the neighbour, that one sends for those who are not there.
    """
    for station in (_INTERNET, _NEIGHBOUR):
        with entered(str(station)):
            if read_host().has(hop.address):
                return station
    if _is_beside(_NEIGHBOUR, hop.own):
        return _NEIGHBOUR
    raise ConflictError(
        f"cannot probe a flow from outside: the host reaches {address} by {hop.link}, where no machine of the lab is"
    )


def _is_beside(station: Path, host: Address) -> bool:
    """Does the station reach this address of the host without a gateway?"""
    with entered(str(station)):
        try:
            hop = next_hop(host)
        except KernelError:
            return False
    return hop is not None and hop.address == host
