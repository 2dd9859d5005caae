"""The parts of the agent that need no kernel: its log, notifications to systemd, and the place of an event."""

from __future__ import annotations

import datetime
import io
import ipaddress
import json
import socket
import struct
from pathlib import Path

import pytest

from vpcctl.agent.journal import DEBUG, ERROR, INFO, WARNING, Journal, is_journal
from vpcctl.agent.supervisor import Supervisor
from vpcctl.engine.state import State
from vpcctl.engine.watched import watched
from vpcctl.kernel import rtnetlink as rt
from vpcctl.kernel.netlink import attribute, nested
from vpcctl.model import operations
from vpcctl.model.network import World
from vpcctl.resources import topology


def then() -> datetime.datetime:
    return datetime.datetime(2026, 1, 2, 3, 4, 5, 678000, datetime.UTC)


def test_the_log_for_people_is_lines_with_levels_where_the_journal_reads_it() -> None:
    stream = io.StringIO()
    log = Journal(stream, prefixed=True, visible=lambda line: line.replace("\x1b", "?"))
    log.write(INFO, "repaired", "first\nsecond \x1b", ["third"], repaired=[])
    log.write(DEBUG, "compared", "left out")
    log.write(ERROR, "failed", "fourth")
    assert stream.getvalue() == "<6>first\n<6>second ?\n<6>third\n<3>fourth\n"


def test_the_log_for_machines_is_one_object_a_line() -> None:
    stream = io.StringIO()
    log = Journal(stream, as_json=True, prefixed=True, most=DEBUG, now=then)
    log.write(WARNING, "warning", "two\nlines ü", ["only for people"], place="shop")
    assert stream.getvalue().count("\n") == 1
    assert json.loads(stream.getvalue()) == {
        "time": "2026-01-02T03:04:05.678Z", "level": "warning", "event": "warning", "message": "two\nlines ü",
        "place": "shop",
    }  # fmt: skip


def test_the_same_words_are_said_once_until_they_are_over() -> None:
    stream = io.StringIO()
    log = Journal(stream)
    for words in ("a", "a", "b", "a"):
        log.write_once("shop", ERROR, "failed", words)
    assert stream.getvalue() == "a\nb\na\n"
    assert log.over("shop")
    assert not log.over("shop")
    log.write_once("shop", ERROR, "failed", "a")
    assert stream.getvalue() == "a\nb\na\na\n"


def test_a_reader_that_is_gone_stops_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    Journal(Gone()).write(INFO, "started", "words")


def test_the_journal_is_known_by_its_numbers(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = (tmp_path / "log").stat()
        assert is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert not is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert not is_journal(stream, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


def test_systemd_is_told_by_datagrams_and_its_watchdog_at_half_its_time(tmp_path: Path) -> None:
    place = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(place)
        channel.settimeout(5)
        told = Supervisor({"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "7"}, 7)
        told.ready()
        told.status("one\nline")
        told.status("one line")
        for now in (10.0, 11.0, 12.0, 13.9, 14.0):
            told.feed(now)
        assert told.wait(14.5) == pytest.approx(1.5)
        told.stopping()
        heard = [channel.recv(100).decode() for _ in range(6)]
    assert heard == ["READY=1", "STATUS=one line", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]
    # The supervisor no longer listens.
    told.ready()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "/run/nobody", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "8"},
        {"NOTIFY_SOCKET": "/run/nobody", "WATCHDOG_USEC": "much"},
    ],
)
def test_a_watchdog_that_is_none_of_ours_is_not_fed(environment: dict[str, str]) -> None:
    told = Supervisor(environment, 7)
    assert (told.interval, told.wait(1.0)) == (None, None)
    told.feed(1.0)
    told.ready()


def state() -> State:
    world = operations.create_vpc(World(), "shop", ipaddress.ip_network("10.0.0.0/16"))
    world = operations.create_subnet(world, "shop", "web", ipaddress.ip_network("10.0.1.0/24"), True, True, 1)
    world = operations.create_vpc(world, "calm", ipaddress.ip_network("10.1.0.0/16"))
    world = operations.create_peering(world, "calm", "shop")
    return State("0123", record=topology.snapshot(world, "0123", {}), world=world)


@pytest.mark.parametrize(
    ("namespace", "link", "alias", "places"),
    [
        (None, "eth0", "", ("",)),
        (None, "vpc-shop", "", ("shop",)),
        (None, "renamed", "vpcctl/0123/shop/uplink", ("shop",)),
        (None, "another", "vpcctl/9999/unknown/uplink", ("",)),
        ("shop-router", "uplink", "", ("shop",)),
        ("shop-router", "br-web", "", ("shop",)),
        # Only root can change the router's end, so its place is not a tenant's.
        ("shop-router", "in-web", "", ("shop",)),
        ("shop-router", "", "", ("shop",)),
        ("shop-web", "eth0", "", ("shop/web",)),
        ("shop-web", "made-by-a-tenant", "vpcctl/0123/calm/uplink", ("shop/web",)),
        ("shop-router", "pr-calm", "", ("calm", "shop")),
        ("calm-router", "pr-shop", "", ("calm",)),
    ],
)
def test_an_event_concerns_the_place_of_its_link_or_namespace(
    namespace: str | None, link: str, alias: str, places: tuple[str, ...]
) -> None:
    found = watched(state())
    assert found.concerned(namespace, link, alias) == places
    assert found.routers == {"shop-router", "calm-router"}
    assert found.vpcs == {"shop", "calm"}
    assert ("shop-web", "10.0.1.1") in found.neighbours


def link(flags: int, *attributes: bytes) -> rt.Link:
    return rt.Link(rt.link(3, attribute(rt.IFLA_IFNAME, b"eth0\0"), *attributes, flags=flags))


def test_of_a_link_carrier_and_counters_do_not_last() -> None:
    operstate, statistics, running = attribute(16, b"\6"), attribute(7, bytes(96)), 0x40 | 0x10000
    assert link(1).lasting == link(1 | running, operstate, statistics).lasting
    for other in (
        link(0),
        link(1, attribute(rt.IFLA_IFALIAS, b"a\0")),
        link(1, attribute(rt.IFLA_MASTER, struct.pack("=I", 4))),
        link(1, attribute(rt.IFLA_MTU, struct.pack("=I", 1400))),
        link(1, nested(rt.IFLA_PROTINFO, attribute(rt.BRIDGE_PORT["isolated"], b"\1"))),
    ):
        assert other.lasting != link(1).lasting
