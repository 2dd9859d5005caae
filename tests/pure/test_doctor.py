"""What doctor concludes from prefixes, files and limits.  tests/lab/test_doctor.py makes the same problems for real."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.listings import (
    severities,
)
from vpcctl.doctor import (
    link_managers,
    name_servers,
    prefix_overlaps,
    source_checks,
    state_directory,
    system,
)
from vpcctl.doctor.apart import apart
from vpcctl.doctor.finding import Finding, worst_first
from vpcctl.engine.state import State, Store
from vpcctl.errors import KernelError
from vpcctl.model.host import Host
from vpcctl.model.network import Instance, Subnet, Vpc, World

# --- Prefixes ---------------------------------------------------------------------------------------------------------


def reached(prefix: str) -> list[prefix_overlaps.Reached]:
    return [prefix_overlaps.Reached(IPv4Network(prefix), "tun0", f"route to {prefix}")]


def shop() -> World:
    instances = (Instance("web", (IPv4Address("10.0.1.2"),), "02:00:00:00:00:01"),)
    subnet = Subnet("web", (ip_network("10.0.1.0/24"),), True, instances=instances)
    return World((Vpc("shop", (ip_network("10.0.0.0/16"),), 0, (subnet,)),))


@pytest.mark.parametrize(
    ("world", "prefix", "severity"),
    [
        (shop(), "100.64.0.0/24", "fatal"),
        (shop(), "100.64.0.0/10", "fatal"),
        (World(), "100.64.0.0/24", "warning"),
        (shop(), "10.0.0.0/8", "warning"),
        (shop(), "10.0.200.0/24", "warning"),
        (shop(), "10.1.0.0/16", "ok"),
        (World(), "10.0.0.0/8", "ok"),
    ],
)
def test_a_prefix_that_the_host_has_too_is_found(world: World, prefix: str, severity: str) -> None:
    [found] = prefix_overlaps.findings(world, reached(prefix))
    assert found.severity == severity
    assert (prefix in found.what) == (severity != "ok")


# --- Network managers -------------------------------------------------------------------------------------------------


def files(root: Path, contents: Mapping[str, str]) -> list[Finding]:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return list(link_managers.findings(root))


NM, NETWORKD, UDEV = "run/NetworkManager/x", "run/systemd/netif/x", "run/udev/control"


def test_nobody_who_takes_links_is_fine(tmp_path: Path) -> None:
    assert severities(files(tmp_path, {})) == ["ok"]


@pytest.mark.parametrize(
    ("place", "text", "severity"),
    [
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=interface-name:vpc-*\n", "ok"),
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices+=mac:aa;interface-name:v*\n", "ok"),
        ("etc/NetworkManager/NetworkManager.conf", "[keyfile]\nunmanaged-devices=*\n", "ok"),
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices-=interface-name:vpc-*\n", "warning"),
        ("usr/lib/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=interface-name:vpc-*\n", "ok"),
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=interface-name:docker*\n", "warning"),
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\n#unmanaged-devices=interface-name:vpc-*\n", "warning"),
        ("etc/NetworkManager/conf.d/a.conf", "[main]\nunmanaged-devices=interface-name:vpc-*\n", "warning"),
        ("etc/hosts", "", "warning"),
    ],
)  # fmt: skip
def test_networkmanager_has_to_be_told(tmp_path: Path, place: str, text: str, severity: str) -> None:
    assert severities(files(tmp_path, {NM: "", place: text})) == [severity]


@pytest.mark.parametrize(
    ("contents", "severity"),
    [
        ({}, "ok"),
        ({"etc/systemd/network/10-lan.network": "[Match]\nName=eth*\n[Network]\nDHCP=yes\n"}, "ok"),
        ({"etc/systemd/network/10-all.network": "[Match]\nName=*\n[Network]\nDHCP=yes\n"}, "warning"),
        ({"etc/systemd/network/10-all.network": "[Match]\nType=ether\n[Network]\nDHCP=yes\n"}, "warning"),
        ({"etc/systemd/network/10-all.network": "[Match]\nName=!eth*\n[Network]\nDHCP=yes\n"}, "warning"),
        ({"etc/systemd/network/10-all.network": "[Match]\nType=ether\nMACAddress=02:00:00:00:00:01\n"}, "ok"),
        ({"usr/lib/systemd/network/80-ve.network": "[Match]\nKind=veth\nName=ve-*\n"}, "ok"),
        (
            {
                "etc/systemd/network/05-vpcctl.network": "[Match]\nName=vpc-*\n[Link]\nUnmanaged=yes\n",
                "etc/systemd/network/10-all.network": "[Match]\nName=*\n",
            },
            "ok",
        ),
        (
            {
                "etc/systemd/network/10-all.network": "[Match]\nName=*\n",
                "etc/systemd/network/20-vpcctl.network": "[Match]\nName=vpc-*\n[Link]\nUnmanaged=yes\n",
            },
            "warning",
        ),
    ],
)
def test_networkd_takes_what_the_first_matching_file_says(
    tmp_path: Path, contents: dict[str, str], severity: str
) -> None:
    assert severities(files(tmp_path, {NETWORKD: "", **contents})) == [severity]


def test_udev_is_in_the_way_only_where_it_renames(tmp_path: Path) -> None:
    ordinary = "[Match]\nOriginalName=*\n[Link]\nNamePolicy=keep kernel path\nMACAddressPolicy=persistent\n"
    assert severities(files(tmp_path, {UDEV: "", "usr/lib/systemd/network/99-default.link": ordinary})) == ["ok"]
    renaming = "[Match]\nDriver=veth\n[Link]\nName=wire0\n"
    assert severities(files(tmp_path, {"etc/systemd/network/10-veth.link": renaming})) == ["warning"]


# --- Limits and versions ----------------------------------------------------------------------------------------------


def sysctls(root: Path, **values: int) -> Path:
    for name, number in values.items():
        path = root / ("net/ipv4/neigh/default" if name.startswith("gc") else "net/netfilter") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n")
    return root


@pytest.mark.parametrize(
    ("most", "buckets", "count", "expected"),
    [(1000, 500, 10, ["ok"]), (1000, 500, 900, ["warning"]), (10000, 500, 10, ["ok", "warning"])],
)
def test_connection_tracking_that_is_nearly_full_or_slow_is_found(
    tmp_path: Path, most: int, buckets: int, count: int, expected: list[str]
) -> None:
    root = sysctls(tmp_path, nf_conntrack_max=most, nf_conntrack_buckets=buckets, nf_conntrack_count=count,
                   nf_conntrack_tcp_loose=1)  # fmt: skip
    assert severities(list(system.connection_tracking(World(), root))) == expected


def test_a_hidden_setting_of_connection_tracking_is_noted(tmp_path: Path) -> None:
    root = sysctls(tmp_path, nf_conntrack_max=1000, nf_conntrack_count=1)
    found = list(system.connection_tracking(World(), root))
    assert severities(found) == ["ok", "note"]
    assert "tcp_loose" in found[1].what
    assert severities(list(system.connection_tracking(World(), tmp_path / "nothing"))) == ["note"]


@pytest.mark.parametrize(("most", "expected"), [(1, ["warning"]), (1024, ["ok"])])
def test_a_neighbour_table_that_is_too_small_for_the_instances_is_found(
    tmp_path: Path, most: int, expected: list[str]
) -> None:
    found = list(system.neighbours(shop(), sysctls(tmp_path, gc_thresh3=most)))
    assert severities(found) == expected
    assert bool(found[0].commands) == (expected == ["warning"])


def test_an_old_python_is_fatal() -> None:
    assert severities([*system.python((3, 10, 14)), *system.python((3, 11, 0)), *system.python()]) == [
        "fatal",
        "ok",
        "ok",
    ]


def test_a_run_netns_that_is_no_directory_or_open_to_all_is_found(tmp_path: Path) -> None:
    place = tmp_path / "netns"
    assert severities(list(system.named_namespaces(place))) == ["ok"]
    place.mkdir(mode=0o755)
    assert severities(list(system.named_namespaces(place))) == ["ok"]
    place.chmod(0o777)
    [found] = system.named_namespaces(place)
    assert (found.severity, found.commands) == ("warning", (f"chmod go-w {place}",))
    place.rmdir()
    place.write_text("")
    assert severities(list(system.named_namespaces(place))) == ["fatal"]


# --- The record -------------------------------------------------------------------------------------------------------


def stored(directory: Path, **changes: Any) -> Store:
    store = Store(directory)
    with store.locked() as writer:
        writer.save(State("abcd1234", boot_id="this boot", **changes))
    return store


def test_a_record_that_is_shut_and_whole_is_fine(tmp_path: Path) -> None:
    store = stored(tmp_path / "state")
    state, found = state_directory.read(store)
    assert (found, state is not None) == ([], True)
    assert severities(list(state_directory.standing(state, "this boot", store))) == ["ok"]


def test_a_record_that_others_can_read_is_found_and_shut_by_the_remedy(tmp_path: Path) -> None:
    store = stored(tmp_path / "it's state", world=shop())
    store.directory.chmod(0o755)
    (store.directory / "state.json").chmod(0o644)
    [part] = (store.directory / "parts").iterdir()
    part.chmod(0o640)
    part.parent.chmod(0o755)
    _, found = state_directory.read(store)
    assert severities(found) == ["warning"] * 4
    for one in found:
        assert os.system(one.commands[0]) == 0
    assert state_directory.read(store)[1] == []


def test_a_directory_that_is_a_link_is_found(tmp_path: Path) -> None:
    stored(tmp_path / "state")
    (tmp_path / "link").symlink_to(tmp_path / "state")
    state, found = state_directory.read(Store(tmp_path / "link"))
    assert (state, set(severities(found))) == (None, {"fatal"})


def test_a_damaged_record_is_fatal(tmp_path: Path) -> None:
    store = stored(tmp_path / "state")
    file = store.directory / "state.json"
    file.write_text(file.read_text().replace("abcd1234", "abcd1235"))
    state, found = state_directory.read(store)
    assert (state, severities(found)) == (None, ["fatal"])
    assert "checksum" in found[0].what


def test_an_unfinished_command_and_another_boot_ask_for_repair(tmp_path: Path) -> None:
    from vpcctl.resources.kinds import Namespace

    store = Store(tmp_path)
    made = State(
        "abcd1234", "this boot", 3, shop(), {"shop": (Namespace("shop-router", "vpcctl/abcd1234/shop/router"),)}
    )
    assert severities(list(state_directory.standing(made, "this boot", store))) == ["ok"]
    [found] = state_directory.standing(made, "another boot", store)
    assert (found.severity, found.commands) == ("fatal", (f"vpcctl --state-dir {tmp_path} repair",))
    pending = State("abcd1234", "this boot", 3, shop(), made.record, World())
    assert severities(list(state_directory.standing(pending, "this boot", store))) == ["warning"]


def test_objects_of_another_state_are_strays() -> None:
    mine, other = (
        ("link vpc-a", "vpcctl/abcd1234/a/uplink", "x"),
        ("link vpc-b", "vpcctl/ffff0000/b/uplink", "remove b"),
    )
    assert list(state_directory.strays("abcd1234", True, [mine], Path("/s"))) == []
    [found] = state_directory.strays("abcd1234", True, [mine, other], Path("/s"))
    assert found.commands == ("remove b",)
    assert "link vpc-b belongs to state ffff0000, not to the state in /s" in found.what
    [found] = state_directory.strays("0000aaaa", False, [mine, other], Path("/s"))
    assert "link vpc-a, link vpc-b belong to state abcd1234, ffff0000, with no record in /s" in found.what


# --- Around it --------------------------------------------------------------------------------------------------------


def test_findings_come_worst_first_and_keep_their_order() -> None:
    found = [Finding(severity, subject, "x") for severity, subject in
             (("ok", "a"), ("fatal", "b"), ("note", "c"), ("warning", "d"), ("fatal", "e"))]  # fmt: skip
    assert [one.subject for one in worst_first(found)] == ["b", "e", "d", "c", "a"]


def test_a_finding_has_its_documented_json() -> None:
    assert Finding("fatal", "s", "w", "y", "r", ("c",)).to_json() == {
        "severity": "fatal", "subject": "s", "what": "w", "why": "y", "remedy": "r", "commands": ["c"]
    }  # fmt: skip


def test_an_answer_that_breaks_off_is_none() -> None:
    before = set(os.listdir("/proc/self/fd"))

    def broken() -> None:
        """Write the beginning of an answer to the pipe's end that has come, and end."""
        for number in map(int, set(os.listdir("/proc/self/fd")) - before):
            with contextlib.suppress(OSError):
                os.write(number, b'["answer", "an')
        os._exit(0)

    with pytest.raises(KernelError, match="without an answer"):
        apart(broken)


def test_what_crashes_apart_does_not_take_us_with_it() -> None:
    assert apart(lambda: [1, "two"]) == [1, "two"]
    with pytest.raises(KernelError, match="SIGKILL"):
        apart(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(KernelError, match="no such thing"):
        apart(lambda: (_ for _ in ()).throw(KernelError("no such thing")))


# --- Name servers, source checks, Tailscale ---------------------------------------------------------------------------

WEB, DB = (
    Subnet(name, (ip_network(f"10.0.{number}.0/24"),), name == "web", False, (Instance(name, (address,), mac),))
    for number, name, address, mac in (
        (1, "web", IPv4Address("10.0.1.2"), "02:00:00:00:00:01"),
        (2, "db", IPv4Address("10.0.2.2"), "02:00:00:00:00:02"),
    )
)
NAMED = World((Vpc("shop", (ip_network("10.0.0.0/16"),), 0, (WEB, DB)),))
LINKED = "ln -sf /run/systemd/resolve/resolv.conf /etc/netns/shop-web/resolv.conf"


def served(root: Path, **files: str) -> Finding:
    """The finding about name servers with these files: `conf`, `upstream` and the instance's `own`."""
    places = {
        "conf": "etc/resolv.conf",
        "upstream": "run/systemd/resolve/resolv.conf",
        "own": "etc/netns/shop-web/resolv.conf",
    }
    for name, text in files.items():
        (root / places[name]).parent.mkdir(parents=True, exist_ok=True)
        (root / places[name]).write_text(text)
    host = Host((ip_network("198.51.100.2/32"),))
    [found] = name_servers.findings(NAMED, host, root)
    return found


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ("nameserver 192.0.2.53\n", "ok"),
        ("nameserver 127.0.0.53\nnameserver 192.0.2.53\n", "ok"),
        ("nameserver 127.0.0.53\noptions edns0\n", "warning"),
        ("nameserver ::1\nnameserver 127.0.0.1\n", "warning"),
        ("nameserver 2001:db8::53\n", "warning"),
        ("nameserver 198.51.100.2\n", "warning"),
        ("nameserver 0.0.0.0\n", "warning"),
        ("search example\n# nameserver 192.0.2.53\n", "warning"),
        ("nameserver\nnameserver fe80::1%eth0\nnameserver x\n", "warning"),
    ],
)
def test_a_name_server_counts_if_instances_reach_it(tmp_path: Path, text: str, severity: str) -> None:
    found = served(tmp_path, conf=text)
    assert (found.severity, found.subject, found.commands) == (severity, "name servers", ())


def test_without_a_resolv_conf_the_default_is_the_hosts_own(tmp_path: Path) -> None:
    assert served(tmp_path).what == "/etc/resolv.conf names only 127.0.0.1, which instances cannot reach"


def test_the_remedy_is_for_instances_with_a_way_out_and_without_a_file_of_their_own(tmp_path: Path) -> None:
    stub, real = "nameserver 127.0.0.53\n", "nameserver 192.0.2.53\n"
    assert served(tmp_path, conf=stub, upstream=stub).commands == ()
    assert served(tmp_path, upstream=real).commands == (f"mkdir -p /etc/netns/shop-web && {LINKED}",)
    assert served(tmp_path, own=stub).severity == "warning"
    assert served(tmp_path, own=real).severity == "ok"


@pytest.mark.parametrize(
    ("values", "commands"),
    [
        ({"all": 0, "eth0": 0, "eth1": 1}, ["eth1"]),
        ({"all": 1, "eth0": 0, "eth1": 2}, ["eth0"]),
        ({"all": 2, "eth0": 1, "eth1": 1}, []),
        ({"all": 0, "eth0": 0}, []),
        ({}, []),
    ],
)
def test_the_larger_value_of_the_link_and_of_all_counts(
    tmp_path: Path, values: dict[str, int], commands: list[str]
) -> None:
    for scope, number in values.items():
        place = tmp_path / "net/ipv4/conf" / scope
        place.mkdir(parents=True)
        (place / "rp_filter").write_text(f"{number}\n")
    [found] = source_checks.findings(("eth0", "eth1"), tmp_path)
    assert found.commands == tuple(f"sysctl -w net.ipv4.conf.{link}.rp_filter=2" for link in commands)
    assert found.severity == ("warning" if commands else "ok")
    [alone] = source_checks.findings(("eth1",), tmp_path)
    assert alone.severity == "ok", "with one way out nothing is asymmetric"
