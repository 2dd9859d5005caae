"""A hint for a command that does not exist: the words of other tools first, then the nearest name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# The verbs of other tools, by the verb that has the same meaning here.
VERBS = {
    **dict.fromkeys(("add", "new", "make", "mk", "create", "enable"), ("create", "apply")),
    **dict.fromkeys(("remove", "rm", "del", "delete", "erase", "drop"), ("delete", "clear")),
    **dict.fromkeys(("ls", "get", "list"), ("list", "show")),
    **dict.fromkeys(("describe", "inspect", "show"), ("show", "list")),
}
# What other tools call the things, by the word for them here.
THINGS = {
    **dict.fromkeys(("peer", "peers", "vpc-peering"), "peering"),
    **dict.fromkeys(("nat", "nat-gw", "natgw", "internet", "gateway"), "nat-gateway"),
    **dict.fromkeys(("rule", "rules", "firewall", "security-group", "acl", "policies"), "policy"),
    **dict.fromkeys(("network", "net"), "vpc"),
    **dict.fromkeys(("host", "vm", "machine", "container"), "instance"),
    **dict.fromkeys(("port", "ports", "published"), "published-ports"),
}
# Words that mean one command, alone or as the verb of a name such as `peer-vpcs`.
COMMANDS_OF = {
    **dict.fromkeys(("run", "ssh", "shell", "enter", "deploy"), "exec"),
    **dict.fromkeys(("attach", "connect", "peer", "peering"), "create-peering"),
    **dict.fromkeys(("detach", "disconnect", "unpeer"), "delete-peering"),
    **dict.fromkeys(("clean", "cleanup", "teardown", "purge"), "destroy"),
    **dict.fromkeys(("add", "new", "make", "mk", "create"), "create-vpc"),
    **dict.fromkeys(("remove", "rm", "del", "delete", "erase"), "delete-vpc"),
    **dict.fromkeys(("ls", "get", "list"), "list-vpcs"),
    **dict.fromkeys(("describe", "inspect", "show", "info"), "show-vpc"),
    **dict.fromkeys(("nat",), "create-nat-gateway"),
    **dict.fromkeys(("firewall", "rules"), "apply-policy"),
    **dict.fromkeys(("expose", "forward"), "publish-port"),
    **dict.fromkeys(("unexpose",), "unpublish-port"),
    **dict.fromkeys(("ports",), "list-published-ports"),
    **dict.fromkeys(("test", "ping", "trace"), "explain"),
    "help": "--help",
    "version": "--version",
}
# Whole words that would mean something else by their verb.
WHOLE = {
    **dict.fromkeys(("delete-all", "remove-all", "rm-all"), "destroy"),
    **dict.fromkeys(("disable-nat", "disable-internet"), "delete-nat-gateway"),
    "port-forward": "publish-port",
    "security-group": "apply-policy",
}
# Commands that take something away are proposed only for a word that begins like them.
DESTRUCTIVE = frozenset({"clear", "delete", "destroy", "unpublish"})
ALIKE = 0.75


def nearest_command(word: str, commands: Iterable[str]) -> str:
    """What to type in place of `word`, else all commands."""
    from vpcctl.documents.reading import nearest

    known = sorted(commands)
    lower = word.lower().replace("_", "-")
    meant = next((name for name in _translated(lower) if name in known or name.startswith("--")), None)
    if meant is not None:
        return f"did you mean {meant!r}?"
    hint = nearest(word, [name for name in known if _fitting(word, name)])
    return hint if hint.startswith("did you mean") else "expected: " + ", ".join(known)


def _translated(word: str) -> Iterator[str]:
    """The names that `word` may mean, the likeliest first."""
    yield WHOLE.get(word, "")
    verb, _, thing = word.partition("-")
    if verb not in VERBS:
        # Other tools have the thing first: `subnet add`.
        first, _, last = word.rpartition("-")
        verb, thing = (last, first) if first and last in VERBS else (verb, thing)
    for own in VERBS.get(verb, ()) if thing else ():
        for name in filter(None, (thing, THINGS.get(thing))):
            # A list is named for many, everything else for one.
            one = name.removesuffix("s")
            yield from (f"{own}-{this}" for this in (name, one, f"{one}s", name.removesuffix("ies") + "y"))
    if not thing or verb not in VERBS:
        yield COMMANDS_OF.get(verb, "")


def _fitting(word: str, name: str) -> bool:
    verb = name.partition("-")[0]
    if verb not in DESTRUCTIVE:
        return True
    import difflib

    own = word.lower().partition("-")[0]
    return difflib.SequenceMatcher(None, own, verb).ratio() >= ALIKE
