"""nftables through libnftables: load a batch, read what is there.

A context opens its netlink socket when it is constructed, and stays bound to the namespace of that moment.
"""

from __future__ import annotations

import json

from vpcctl.compiler import table_comment
from vpcctl.errors import ConflictError, KernelError
from vpcctl.items import Ruleset, where
from vpcctl.kernel.interface import ABSENT, RIGHT, Condition, State
from vpcctl.kernel.namespaces import entered
from vpcctl.names import TABLE
from vpcctl.nft import removal


def context(namespace: str | None):
    """A libnftables context that is bound to `namespace`; KernelError without libnftables.so.1."""
    try:
        from nftables import Nftables

        with entered(namespace):
            return Nftables()
    except OSError as error:
        raise KernelError(
            "libnftables.so.1 is missing, without which no firewall can be loaded; install it:"
            " apt-get install libnftables1",
            str(error),
        ) from error


def _run(nft, namespace: str | None, batch: str) -> str:
    status, output, words = nft.cmd(batch)
    if status != 0:
        raise KernelError(f"nftables refused the batch for {where(namespace)}", words.strip())
    return output


def comments(nft, families: tuple[str, ...]) -> dict[str, str]:
    """The comment of our table in each of `families` that has one; a table without a comment has an empty one."""
    found = {}
    nft.set_terse_output(True)
    nft.set_json_output(False)
    for family in families:
        status, output, _ = nft.cmd(f"list table {family} {TABLE}")
        if status == 0:
            line = next((line for line in output.splitlines() if line.strip().startswith("comment ")), "")
            found[family] = line.strip().removeprefix("comment ").strip('"')
    nft.set_terse_output(False)
    return found


def load(nft, item: Ruleset) -> None:
    """Load the ruleset unless the very same is loaded; ConflictError where the table is somebody else's."""
    present = comments(nft, item.families)
    _refuse_foreign(item, present)
    if observe(item, present) != RIGHT:
        _run(nft, item.namespace, item.text)


def unload(nft, item: Ruleset) -> None:
    """Remove our tables; foreign ones of that name stay."""
    ours = {family for family, comment in comments(nft, item.families).items() if comment.startswith(item.tag)}
    if ours:
        _run(nft, item.namespace, removal(tuple((family, TABLE) for family in sorted(ours))))


def observe(item: Ruleset, present: dict[str, str]) -> Condition:
    """Compare the tables' comments with the ruleset that should be loaded."""
    wanted = table_comment(item.tag, item.fingerprint, item.generation)
    # The closed ruleset and the host's have no ARP part: what the text does not contain is not expected.
    expected = [family for family in item.families if f"\ntable {family} {TABLE} {{" in item.text or not item.text]
    if not present:
        return ABSENT
    if any(comment and not comment.startswith(item.tag) for comment in present.values()):
        return Condition(State.FOREIGN, f"table {TABLE} is not ours")
    missing = [family for family in expected if family not in present]
    if missing:
        return Condition(State.DIFFERENT, f"table {missing[0]} {TABLE} is missing")
    if any(present[family] != wanted for family in expected):
        return Condition(State.DIFFERENT, "another ruleset is loaded")
    return RIGHT


def listing(nft, namespace: str | None, families: tuple[str, ...]) -> str:
    """Our tables as the kernel has them now, as ``nft list`` prints them."""
    return "\n".join(
        _run(nft, namespace, f"list table {family} {TABLE}")
        for family in families
        if family in comments(nft, (family,))
    )


def elements(nft, namespace: str | None) -> list[dict]:
    """Our inet table as libnftables' JSON objects (libnftables-json(5))."""
    nft.set_json_output(True)
    try:
        return json.loads(_run(nft, namespace, f"list table inet {TABLE}"))["nftables"]
    finally:
        nft.set_json_output(False)


def _refuse_foreign(item: Ruleset, present: dict[str, str]) -> None:
    for family, comment in present.items():
        if not comment.startswith(item.tag):
            raise ConflictError(
                f"{where(item.namespace)} has a table `{family} {TABLE}` that is not ours"
                f" (comment {comment!r}); rename or delete it"
            )
