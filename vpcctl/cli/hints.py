"""A hint for a command that does not exist: the words of other tools first, then the nearest name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# The verbs of other tools, by the verb that has the same meaning here.
VERBS = {
    **dict.fromkeys(("add", "new", "make", "mk", "create"), ("create", "apply")),
    **dict.fromkeys(("remove", "rm", "del", "erase", "drop"), ("delete", "clear")),
    **dict.fromkeys(("ls", "get", "list"), ("list", "show")),
    **dict.fromkeys(("describe", "inspect", "show"), ("show", "list")),
}
# Words that mean one command, alone or as the verb of a name such as `peer-vpcs`.
COMMANDS_OF = {
    **dict.fromkeys(("run", "ssh", "shell", "enter"), "exec"),
    **dict.fromkeys(("attach", "connect", "peer"), "create-peering"),
    **dict.fromkeys(("detach", "disconnect", "unpeer"), "delete-peering"),
    **dict.fromkeys(("cleanup", "teardown", "purge"), "destroy"),
    **dict.fromkeys(("ls", "get", "list"), "list-vpcs"),
    **dict.fromkeys(("describe", "inspect", "show"), "show-vpc"),
}
# Commands that take something away are proposed only for a word that begins like them.
DESTRUCTIVE = frozenset({"clear", "delete", "destroy", "unpublish"})
ALIKE = 0.75


def nearest_command(word: str, commands: Iterable[str]) -> str:
    """What to type in place of `word`, else all commands."""
    from vpcctl.documents.reading import nearest

    known = sorted(commands)
    meant = next((name for name in _translated(word.lower()) if name in known), None)
    if meant is not None:
        return f"did you mean {meant!r}?"
    hint = nearest(word, [name for name in known if _fitting(word, name)])
    return hint if hint.startswith("did you mean") else "expected: " + ", ".join(known)


def _translated(word: str) -> Iterator[str]:
    """The names that `word` may mean, the likeliest first."""
    verb, _, thing = word.partition("-")
    for own in VERBS.get(verb, ()) if thing else ():
        # A list is named for many, everything else for one.
        singular = thing.removesuffix("s")
        yield from (f"{own}-{one}" for one in (thing, singular, f"{singular}s", thing.removesuffix("ies") + "y"))
    if not thing or verb not in VERBS:
        yield COMMANDS_OF.get(verb, "")


def _fitting(word: str, name: str) -> bool:
    verb = name.partition("-")[0]
    if verb not in DESTRUCTIVE:
        return True
    import difflib

    own = word.lower().partition("-")[0]
    return difflib.SequenceMatcher(None, own, verb).ratio() >= ALIKE
