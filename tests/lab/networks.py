"""Other networks of the lab's host, as scripts for `sh -e`."""

from __future__ import annotations

from vpcctl.lab import RUN_LAB


def machine_behind(link: str, netns: str, host: str, address: str) -> str:
    """Make a link of the host and a namespace behind it, which have these addresses."""
    return f"""
ip netns add {netns}
ip link add {link} type veth peer name eth0 netns {netns}
ip address add {host} dev {link}
ip link set {link} up
ip -n {netns} address add {address} dev eth0
ip -n {netns} link set eth0 up
"""


def way_out(link: str) -> str:
    """Make a second link to the lab's internet, where 192.0.2.1 is the gateway."""
    return f"""
ip link add {link} type veth peer name far
ip link set far netns {RUN_LAB}/internet
ip address add 192.0.2.2/30 dev {link}
ip link set {link} up
nsenter --net={RUN_LAB}/internet sh -ec 'ip address add 192.0.2.1/30 dev far; ip link set far up'
"""


SECOND_CARD = f"""
{machine_behind("eth1", "lan2", "192.0.2.1/24", "192.0.2.9/24")}
ip -n lan2 route add default via 192.0.2.1
"""
# A VPN with a routing table of its own and rules that lead there, as wg-quick(8) makes it.
VPN = f"""
{way_out("wg0")}
ip route add default via 192.0.2.1 dev wg0 table 51820
ip rule add not fwmark 0xca6c table 51820
ip rule add table main suppress_prefixlength 0
"""
