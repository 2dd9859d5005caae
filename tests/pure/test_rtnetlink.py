"""What we write pyroute2 reads, and what pyroute2 writes we read: two programs that know the kernel's layouts."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl import ndmsg as neighbours
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.ndtmsg import ndtmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from vpcctl.kernel import netlink
from vpcctl.kernel import rtnetlink as rt
from vpcctl.resources.kinds import PORT_FLAGS

MAC = "02:00:5e:00:53:01"
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=15)
macs = st.binary(min_size=6, max_size=6).map(lambda value: value.hex(":"))
indices = st.integers(1, 2**31 - 1)
addresses = st.ip_addresses()
networks = st.one_of(
    st.tuples(st.ip_addresses(v=version), st.integers(0, bits)).map(lambda pair: ipaddress.ip_network(pair, False))
    for version, bits in ((4, 32), (6, 128))
)


def read(kind: type, body: bytes):
    """A body of ours as pyroute2 understands it."""
    found = kind(netlink.message(0, 0, body))
    found.decode()
    return found


def written(message) -> bytes:
    """The body of a message of pyroute2."""
    message.encode()
    return bytes(message.data)[16:]


def told(message, *path: str):
    for name in path:
        message = None if message is None else message.get_attr(name)
    return message


# --- Requests -----------------------------------------------------------------------------------------------------


@given(names, macs, names, macs, st.none() | st.integers(0, 1000))
def test_a_pair_is_asked_for_with_the_names_addresses_and_namespace(name, mac, peer, peer_mac, descriptor) -> None:
    body = rt.link(0, rt.name_and_mac(name, mac), rt.veth(peer, peer_mac, descriptor))
    found = read(ifinfmsg, body)
    assert (told(found, "IFLA_IFNAME"), told(found, "IFLA_ADDRESS")) == (name, mac)
    assert told(found, "IFLA_LINKINFO", "IFLA_INFO_KIND") == "veth"
    other = told(found, "IFLA_LINKINFO", "IFLA_INFO_DATA", "VETH_INFO_PEER")
    assert (told(other, "IFLA_IFNAME"), told(other, "IFLA_ADDRESS")) == (peer, peer_mac)
    assert told(other, "IFLA_NET_NS_FD") == descriptor


def test_a_bridge_and_a_device_with_a_queue_are_asked_for() -> None:
    found = read(ifinfmsg, rt.link(0, rt.name_and_mac("br-web", MAC), rt.bridge()))
    assert told(found, "IFLA_LINKINFO", "IFLA_INFO_KIND") == "bridge"
    assert told(found, "IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_BR_MCAST_SNOOPING") == 0
    assert told(read(ifinfmsg, rt.link(7, rt.mtu(1400))), "IFLA_MTU") == 1400
    found = read(ifinfmsg, rt.link(0, rt.name_and_mac("cs-web", MAC), rt.queue(1000), rt.kind("ifb")))
    assert (told(found, "IFLA_LINKINFO", "IFLA_INFO_KIND"), told(found, "IFLA_TXQLEN")) == ("ifb", 1000)
    assert told(found, "IFLA_LINKINFO", "IFLA_INFO_DATA") is None


@given(indices, names)
def test_a_link_is_changed_by_its_index(index: int, name: str) -> None:
    found = read(ifinfmsg, rt.link(index, rt.alias(name), rt.master(index), rt.namespace(7)))
    assert found["index"] == told(found, "IFLA_MASTER") == index
    assert (told(found, "IFLA_IFALIAS"), told(found, "IFLA_NET_NS_FD")) == (name, 7)
    found = read(ifinfmsg, rt.link(index, flags=rt.IFF_UP, change=rt.IFF_UP))
    assert (found["flags"], found["change"], found["attrs"]) == (1, 1, [])
    assert told(read(ifinfmsg, rt.link(index, rt.rename(name))), "IFLA_IFNAME") == name
    altnames = told(read(ifinfmsg, rt.link(index, rt.alternative(name))), "IFLA_PROP_LIST")
    assert told(altnames, "IFLA_ALT_IFNAME") == name


def test_a_port_gets_each_of_its_flags() -> None:
    found = read(ifinfmsg, rt.link(3, rt.bridge_port(PORT_FLAGS)))
    assert told(found, "IFLA_LINKINFO", "IFLA_INFO_SLAVE_KIND") == "bridge"
    data = told(found, "IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA")
    assert {name: told(data, f"IFLA_BRPORT_{name.upper()}") for name in PORT_FLAGS} == PORT_FLAGS


def test_a_link_is_looked_up_by_its_index_or_its_name() -> None:
    for body in (rt.lookup("web"), rt.lookup("web", 9), rt.all_links()):
        found = read(ifinfmsg, body)
        assert told(found, "IFLA_EXT_MASK") == rt.RTEXT_FILTER_SKIP_STATS
    assert told(read(ifinfmsg, rt.lookup("web")), "IFLA_IFNAME") == "web"
    assert told(read(ifinfmsg, rt.lookup("web", 9)), "IFLA_IFNAME") is None
    assert read(ifinfmsg, rt.lookup("web", 9))["index"] == 9


@given(indices, addresses, st.integers(0, 32))
def test_an_address_is_asked_for(index: int, address, length: int) -> None:
    found = read(ifaddrmsg, rt.address(index, address, length))
    assert (found["index"], found["prefixlen"]) == (index, length)
    assert found["family"] == (socket.AF_INET if address.version == 4 else socket.AF_INET6)
    assert ipaddress.ip_address(told(found, "IFA_ADDRESS")) == address
    assert told(found, "IFA_LOCAL") == (told(found, "IFA_ADDRESS") if address.version == 4 else None)


@given(indices, addresses, macs)
def test_a_neighbour_and_an_entry_of_a_bridge_are_asked_for(index: int, address, mac: str) -> None:
    found = read(ndmsg, rt.neighbour(index, address, mac, state=rt.NUD_PERMANENT))
    assert (found["ifindex"], found["state"], found["flags"]) == (index, neighbours.states["permanent"], 0)
    assert (ipaddress.ip_address(told(found, "NDA_DST")), told(found, "NDA_LLADDR")) == (address, mac)
    assert told(read(ndmsg, rt.neighbour(index, address)), "NDA_LLADDR") is None
    found = read(ndmsg, rt.forwarding(index, mac, state=rt.NUD_NOARP))
    assert (found["family"], found["ifindex"], found["state"]) == (socket.AF_BRIDGE, index, neighbours.states["noarp"])
    assert (found["flags"], told(found, "NDA_LLADDR")) == (neighbours.flags["master"], mac)


@given(networks, indices, st.data())
def test_a_route_is_asked_for(destination, index: int, data) -> None:
    own = st.none() | st.ip_addresses(v=destination.version)
    gateway, source = data.draw(own), data.draw(own)
    found = read(rtmsg, rt.route(destination, index, gateway, source, flags=rt.RTNH_F_ONLINK))
    assert (found["dst_len"], found["table"], found["proto"]) == (destination.prefixlen, 254, 4)
    assert (found["type"], found["scope"], found["flags"]) == (1, 0, 4)
    assert told(found, "RTA_OIF") == index
    wanted = {"RTA_DST": destination.network_address if destination.prefixlen else None}
    wanted |= {"RTA_GATEWAY": gateway, "RTA_PREFSRC": source}
    for name, value in wanted.items():
        text = told(found, name)
        assert (None if text is None else ipaddress.ip_address(text)) == value, name


@given(indices, st.integers(0, 10**6))
def test_the_delay_of_answers_on_behalf_of_others_is_asked_for(index: int, delay: int) -> None:
    found = read(ndtmsg, rt.proxy_delay(index, delay))
    assert (found["family"], told(found, "NDTA_NAME")) == (socket.AF_INET, "arp_cache")
    assert told(found, "NDTA_PARMS", "NDTPA_IFINDEX") == index
    assert told(found, "NDTA_PARMS", "NDTPA_PROXY_DELAY") == delay
    assert rt.read_proxy_delay(rt.proxy_delay(index, delay)) == (index, delay)


# --- Answers ------------------------------------------------------------------------------------------------------


@given(indices, names, macs, st.text(max_size=40).filter(lambda text: "\0" not in text), st.lists(names, max_size=3))
def test_a_link_is_read(index: int, name: str, mac: str, alias: str, altnames: list[str]) -> None:
    message = ifinfmsg()
    message["index"], message["flags"] = index, 0x11043
    message["attrs"] = [
        ("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_IFALIAS", alias), ("IFLA_MASTER", 7), ("IFLA_LINK", 8),
        ("IFLA_PROP_LIST", {"attrs": [("IFLA_ALT_IFNAME", one) for one in altnames]}),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]}),
    ]  # fmt: skip
    found = rt.Link(written(message))
    assert (found.index, found.up, found.name, found.mac, found.alias) == (index, True, name, mac, alias)
    assert (found.master, found.peer, found.kind, found.altnames, found.port) == (7, 8, "veth", altnames, {})


def test_a_link_without_attributes_has_none() -> None:
    found = rt.Link(rt.link(5))
    assert (found.index, found.up, found.name, found.mac, found.alias) == (5, False, "", None, "")
    assert (found.master, found.peer, found.kind, found.altnames, found.port) == (None, None, "", [], {})


def test_the_flags_of_a_port_are_read_as_far_as_the_kernel_has_them() -> None:
    assert rt.Link(rt.link(5, rt.bridge_port(PORT_FLAGS))).port == PORT_FLAGS
    assert rt.Link(rt.link(5, rt.bridge_port({"learning": 1}))).port == {"learning": 1}


@pytest.mark.parametrize("local", [True, False])
@given(address=addresses, length=st.integers(0, 32))
def test_an_address_is_read(local: bool, address, length: int) -> None:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET if address.version == 4 else socket.AF_INET6
    message["index"], message["prefixlen"] = 4, length
    # Of a pair of addresses the first is the far end's.
    far = "192.0.2.1" if address.version == 4 else "2001:db8::1"
    message["attrs"] = [("IFA_ADDRESS", far if local else str(address))]
    message["attrs"] += [("IFA_LOCAL", str(address))] if local else []
    assert rt.read_address(written(message)) == rt.LinkAddress(4, f"{address}/{length}")


@given(addresses, macs)
def test_a_neighbour_is_read(address, mac: str) -> None:
    assert rt.read_neighbour(rt.neighbour(3, address, mac, state=2)) == rt.KnownNeighbour(3, str(address), mac, 2)
    assert rt.read_neighbour(rt.neighbour(3, address)) == rt.KnownNeighbour(3, str(address), None, 0)
    assert rt.read_neighbour(rt.forwarding(3, mac, state=64)) == rt.KnownNeighbour(3, "", mac, 64)


@given(networks, st.data())
def test_a_route_is_read(destination, data) -> None:
    own = st.none() | st.ip_addresses(v=destination.version)
    gateway, source = data.draw(own), data.draw(own)
    found = rt.read_route(rt.route(destination, 6, gateway, source))
    words = (str(gateway) if gateway else "", str(source) if source else "")
    assert found == rt.KnownRoute(254, rt.RTN_UNICAST, destination, (6,), *words, 0)


def test_a_route_with_several_next_hops_a_metric_and_a_table_above_255_is_read() -> None:
    message = rtmsg()
    message["family"], message["dst_len"], message["table"], message["type"] = socket.AF_INET, 24, 252, 1
    hops = [{"oif": index, "attrs": [("RTA_GATEWAY", "192.0.2.1")]} for index in (3, 9)]
    message["attrs"] = [
        ("RTA_DST", "203.0.113.0"), ("RTA_PRIORITY", 20), ("RTA_TABLE", 51820), ("RTA_MULTIPATH", hops)
    ]  # fmt: skip
    found = rt.read_route(written(message))
    assert found == rt.KnownRoute(51820, 1, ipaddress.ip_network("203.0.113.0/24"), (3, 9), "", "", 20)


def test_a_route_of_another_family_is_passed_over() -> None:
    assert rt.read_route(bytes([socket.AF_BRIDGE]) + rt.all_routes()[1:]) is None


def test_the_table_of_no_single_link_has_no_delay_of_a_link() -> None:
    message = ndtmsg()
    message["family"], message["attrs"] = socket.AF_INET, [("NDTA_NAME", "arp_cache")]
    assert rt.read_proxy_delay(written(message)) is None
