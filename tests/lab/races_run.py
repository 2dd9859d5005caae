"""The program behind `test_races.py`: it runs in a lab and strikes each request that the kernel's edge makes.

A VPC is made.  Then, for each of its objects and for n = 1, 2, …, the instance's link is deleted just before the n-th
netlink request that comparing, making or removing the object takes: root in an instance can do that at any moment.
Printed is a line of JSON: how often each kind was struck, and what was raised that is no error of ours.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyroute2

from tests.story import told
from vpcctl import names
from vpcctl.errors import ConflictError, KernelError
from vpcctl.kernel import links
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.kernel.netlink import NetlinkError
from vpcctl.resources import topology
from vpcctl.resources.kinds import RANK, Item, Namespace, Ruleset, Setting

VPC, INSTANCE = "two", "api"
ROUTER, INSIDE = names.router_namespace(VPC), names.instance_namespace(VPC, INSTANCE)
MOST = 40  # more requests than any object takes


class Strikes:
    """Stands before each rtnetlink socket: before request number `at` the instance's link is deleted."""

    def __init__(self) -> None:
        self.at = self.seen = 0
        self._tenant = links.Rtnl(INSIDE)

    def strike(self) -> None:
        # Not there: the last strike's.
        with contextlib.suppress(NetlinkError):
            self._tenant.remove_link(names.INSTANCE_LINK)

    def before(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.strike()


class Struck:
    """An rtnetlink socket, each of whose requests may be struck."""

    def __init__(self, channel: Any, strikes: Strikes):
        self._channel, self._strikes = channel, strikes

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._channel, name)
        if name == "close" or not callable(inner):
            return inner

        def request(*words: Any, **arguments: Any) -> Any:
            self._strikes.before()
            return inner(*words, **arguments)

        return request


def rounds(kernel: LinuxKernel, items: list[Item], strikes: Strikes) -> Iterator[tuple[str, str, bool, str]]:
    """Verb, kind, whether a request was struck, and what was raised that is no error of ours."""
    verbs: dict[str, Callable[[Item], object]] = {
        "observe": lambda item: kernel.observe([*spaces, item]),
        "ensure": kernel.ensure,
        "remove": kernel.remove,
    }
    spaces = [item for item in items if isinstance(item, Namespace)]
    for place, item in enumerate(items):
        if isinstance(item, (Namespace, Ruleset, Setting)):
            continue
        for verb, act in verbs.items():
            # Making is also struck where neither the object nor what stands on it is there yet.
            for absent in (False, True) if verb == "ensure" else (False,):
                for at in range(1, MOST):
                    strikes.at = 0
                    if absent:
                        strikes.strike()
                    for one in items[: place if absent else None]:
                        kernel.ensure(one)
                    strikes.at, strikes.seen, raised = at, 0, ""
                    try:
                        act(item)
                    except (ConflictError, KernelError):
                        pass
                    except Exception as error:
                        raised = f"{verb} {item}, request {at}: {error!r}"
                    struck = strikes.seen >= at
                    yield verb, type(item).__name__, struck, raised
                    if not struck:
                        break


def made(make: Callable[[], Any], strikes: Strikes) -> Struck:
    """A socket that is struck."""
    return Struck(make(), strikes)


def main() -> None:
    world = told("create its subnet api")
    items = sorted(topology.snapshot(world, "0a1b2c3d", {})[VPC], key=lambda item: RANK[type(item)])
    kernel = LinuxKernel()
    for item in items:
        kernel.ensure(item)
    strikes = Strikes()
    kernel.close()
    # Detours are pyroute2's (vpcctl/kernel/checksums.py), everything else our own.
    for module, name in ((links, "Channel"), (pyroute2, "IPRoute")):
        setattr(module, name, partial(made, getattr(module, name), strikes))
    counts: Counter[str] = Counter()
    wrong = []
    for verb, kind, struck, raised in rounds(kernel, items, strikes):
        counts[f"{verb} {kind}"] += struck
        wrong += [raised] if raised else []
    print(json.dumps({"struck": counts, "wrong": wrong}))


if __name__ == "__main__":
    main()
