"""What stands for the internet where vpcctl runs: the lab's pretend one, or whatever is behind the host's way out."""

from __future__ import annotations

import ipaddress
import os
import socket

from vpcctl.errors import KernelError
from vpcctl.kernel.probe import Outside
from vpcctl.lab import HOST, INTERNET, RUN_LAB
from vpcctl.policy import Address


def outside() -> tuple[Outside, Address]:
    """Where probes for the internet are looked for, and the address that stands for it as a whole.

    On a real host that is an address of TEST-NET-3 (RFC 5737), which belongs to nobody; the probe is seen as it
    leaves.  KernelError where the host has no way out.
    """
    if "VPCCTL_LAB" in os.environ and (RUN_LAB / "internet").exists():
        return Outside(RUN_LAB / "internet", HOST), INTERNET
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((str(INTERNET), 9))  # asks for the route; nothing is sent
        except OSError as error:
            raise KernelError(
                "the host has no way to the internet, so there is nothing to probe", str(error)
            ) from error
        return Outside(None, ipaddress.IPv4Address(way.getsockname()[0]), leaving=True), INTERNET
