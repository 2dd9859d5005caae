"""What the documents say of the code is so: tables, commands, options, examples and links."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import click
import pytest

from tests.coexist import matrix
from tests.house import PACKAGES
from vpcctl.cli import COMMANDS, commands
from vpcctl.cli.session import EXIT_STATUSES, Command
from vpcctl.compiler import compile_vpc
from vpcctl.compiler.hooks import BASE_CHAINS
from vpcctl.compiler.host_table import host_table
from vpcctl.documents import binding
from vpcctl.documents.policies import read_policies
from vpcctl.model import operations
from vpcctl.model.network import Publication, World
from vpcctl.names import DEFAULT_STATE_DIR, TABLE
from vpcctl.resources import kinds

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SHELL_SIGN = re.compile(r"[|&<>;]+")
CONTEXT = click.Context(commands, info_name="vpcctl")


def page(name: str) -> str:
    return (ROOT / name).read_text()


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the table whose first column is headed `heading`, without marks of code."""
    lines = text[text.index(f"| {heading} |") :].splitlines()
    rows = (line for line in lines[2 : next((n for n, line in enumerate(lines) if not line.startswith("|")), None)])
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


def blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each call of vpcctl in the shell blocks, up to the shell's own signs."""
    for line in "".join(blocks(text, "sh")).splitlines():
        if "vpcctl " in line and not line.startswith("git clone"):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            simple = [list(words) for sign, words in groupby(lexer, SHELL_SIGN.fullmatch) if not sign]
            yield from (words[words.index("vpcctl") + 1 :] for words in simple if "vpcctl" in words)


def sections(text: str) -> dict[str, str]:
    """What stands under each heading of the third order, up to the next heading."""
    parts = re.split(r"^#{2,3} .*$", text, flags=re.MULTILINE)
    headings = re.findall(r"^(#{2,3}) (.*)$", text, re.MULTILINE)
    return {name: body for (marks, name), body in zip(headings, parts[1:], strict=True) if marks == "###"}


# Options of every command that changes something that have a section of their own: that of `confirm`.
OF_CHANGES = {"--confirm", "--probe"}


def options(name: str) -> set[str]:
    command = commands.get_command(CONTEXT, name)
    assert command is not None
    return {word for parameter in command.params if isinstance(parameter, click.Option) for word in parameter.opts}


def shared(name: str) -> set[str]:
    """The options that a command has in common with others; they are described once, before all commands."""
    command = commands.get_command(CONTEXT, name)
    assert isinstance(command, Command)
    return {word for parameter in command.shared for word in parameter.opts if word.startswith("--")}


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def world() -> World:
    """A VPC with all that makes chains of its own."""
    made = operations.create_vpc(World(), "shop", ipaddress.ip_network("10.0.0.0/16"))
    made = operations.create_subnet(made, "shop", "web", ipaddress.ip_network("10.0.1.0/24"), True, True, 1)
    return operations.publish_port(made, "shop", Publication(6, 8080, "web", 80))


def test_the_table_of_base_chains_is_that_of_the_compiler() -> None:
    documented = table(page("docs/packet-path.md"), "chain")
    assert documented == [
        [name, hook.kind, hook.hook, hook.priority, hook.policy, reason] for name, (hook, reason) in BASE_CHAINS.items()
    ]


def test_the_rules_of_the_judgement_are_those_of_the_compiler() -> None:
    [chain] = [chain for chain in compile_vpc(world(), "shop", "x").tables[0].chains if chain.name == "filter-forward"]
    assert [row[0] for row in table(page("docs/packet-path.md"), "rule")] == [str(rule) for rule in chain.rules]


def test_the_base_chains_outside_that_table_are_named_beside_it() -> None:
    tables = [*compile_vpc(world(), "shop", "x").tables, host_table(world())]
    others = {
        (one.family, chain.name)
        for one in tables
        for chain in one.chains
        if chain.hook and chain.name not in BASE_CHAINS
    }
    text = page("docs/packet-path.md")
    assert {name for _, name in others if f"`{name}`" not in text} == set()
    assert {family for family, _ in others if f"`{family} {TABLE}`" not in text} == set()


def furnished() -> World:
    """The same with a peer, and with policies that have every kind of rule."""
    made = operations.create_vpc(world(), "billing", ipaddress.ip_network("10.50.0.0/16"))
    made = operations.create_peering(made, "shop", "billing")
    rules = [{"action": "allow", "log": True}, {"action": "reject"}, {"action": "allow", "limit": "1/second"}]
    found = read_policies({"subnet": "web", "ingress": rules, "egress": rules}, "web.json")
    return binding.attach(made, found, "shop", None)[0]


def test_every_chain_of_the_compiler_is_told_of() -> None:
    """Chains that are made for each subnet or peer stand there with an example's name in its place."""
    text = page("docs/packet-path.md")
    chains = [chain.name for table in compile_vpc(furnished(), "shop", "x").tables for chain in table.chains]
    chains += [chain.name for chain in host_table(furnished()).chains]
    assert {"served-reply", "send-reject", "ingress-web.log.0", "ingress-web.reply", "from-peer-billing"} <= set(chains)
    examples = {"ingress-web": "ingress-db", "egress-web": "egress-web", "arrive-web": "arrive-<subnet>"}

    def told(name: str) -> bool:
        stem, dot, rest = name.partition(".")
        shapes = {examples.get(stem, stem) + dot + rest, name, "ingress-db" + dot + rest if "gress-" in stem else name}
        return any(re.search(rf"(`|^| ){re.escape(shape)}(`| |$)", text, re.MULTILINE) for shape in shapes)

    assert [name for name in chains if not told(name)] == []


def test_the_way_of_stray_addresses_is_told() -> None:
    [path] = [one for one in compile_vpc(world(), "shop", "x").tables[0].chains if one.name == "path"]
    assert any("oifname" in str(rule) and str(rule).endswith("drop") and "daddr" in str(rule) for rule in path.rules)
    assert "follow the default route" in page("docs/packet-path.md")


def test_the_order_of_creation_is_that_of_the_plan() -> None:
    text = page("docs/architecture.md").split("<!-- order: kinds.REGISTRY -->")[1].split("\n\n")[0]
    assert re.findall(r"`(\w+)`", text) == [kind.item.__name__ for kind in kinds.REGISTRY]


def test_the_table_of_packages_has_every_package_in_its_order() -> None:
    text = page("docs/architecture.md")
    rows = table(text, "package")
    assert tuple(name.strip("/") for name, _ in rows) == PACKAGES
    for package in ("model", "documents", "compiler", "analysis", "resources", "engine"):
        modules = {path.stem for path in (ROOT / "vpcctl" / package).glob("*.py")} - {"__init__"}
        assert modules <= set(re.findall(r"`(\w+)`", text)), package


def test_the_exit_statuses_are_those_of_the_program() -> None:
    assert table(page("README.md"), "status") == [[str(status), words] for status, words in EXIT_STATUSES.items()]


def test_every_command_has_its_section_and_every_section_its_command() -> None:
    assert sorted(sections(page("docs/cli.md"))) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_stands_in_its_section_and_no_other(name: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", sections(page("docs/cli.md"))[name], flags=re.MULTILINE | re.DOTALL)
    mentioned = set(re.findall(r"`(--[\w-]+)[` ]", prose)) - (OF_CHANGES if name == "confirm" else set())
    # A sentence may be about another command's option, and says so by naming the command before it.
    elsewhere = {word for word in mentioned if re.search(rf"`{word}` of `", prose)}
    assert mentioned - elsewhere - shared(name) == options(name)


def test_the_options_of_every_change_are_told_in_detail() -> None:
    changing = {name for name in COMMANDS if shared(name) >= OF_CHANGES}
    assert {"create-vpc", "delete-instance", "publish-port", "apply-policy", "apply", "undo", "destroy"} <= changing
    assert {"status", "confirm", "list-vpcs", "exec"} & changing == set()
    told = sections(page("docs/cli.md"))["confirm"]
    assert all(f"`{word} " in told for word in OF_CHANGES)


def test_the_options_for_all_commands_are_told() -> None:
    first = page("docs/cli.md").split("\n## ")[1]
    wanted = {word for parameter in commands.params for word in parameter.opts} | {"-h", "--help"}
    wanted |= {word for name in COMMANDS for word in shared(name)}
    assert {"--json", "--dry-run", "--yes"} <= wanted
    assert {word for word in wanted if f"`{word}" not in first} == set()


@pytest.mark.parametrize("name", ["README.md", "docs/cli.md"])
def test_every_example_is_a_command_as_the_program_takes_it(name: str) -> None:
    found = list(command_lines(page(name)))
    assert len(found) > 10
    for words in found:
        command = commands.get_command(CONTEXT, words[0])
        assert command is not None, words
        command.make_context(words[0], words[1:])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_in_a_commands_help_is_one_as_well(name: str) -> None:
    command = commands.get_command(CONTEXT, name)
    assert command is not None
    _, sign, example = (command.help or "").partition("Example: vpcctl ")
    assert sign, f"the help of {name} has no example"
    words = shlex.split(example.split(" > ")[0])
    assert words[0] == name
    command.make_context(name, words[1:])


def test_every_recipe_that_a_document_names_is_there() -> None:
    recipes = set(re.findall(r"^(\w+)(?: \*\w+)?:$", page("Justfile"), re.MULTILINE))
    assert {"test", "lint", "docs"} <= recipes
    named = {name for path in [*PAGES, ROOT / ".ci/run"] for name in re.findall(r"\./run ([a-z]+)", path.read_text())}
    assert named <= recipes


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        place, _, anchor = target.partition("#")
        if place.startswith("https://"):
            continue
        other = (path.parent / place).resolve() if place else path
        if not other.exists() or (anchor and anchor not in anchors(other.read_text())):
            broken.append(target)
    assert broken == []


def test_the_list_of_decisions_has_them_all_by_their_titles() -> None:
    listed = dict(re.findall(r"^\| \[(\d+)\]\([^)]*\) \| (.*) \|$", page("docs/adr/README.md"), re.MULTILINE))
    titles = (path.read_text().splitlines()[0] for path in sorted((ROOT / "docs/adr").glob("[0-9]*.md")))
    assert listed == dict(re.findall(r"^# (\d+)\. (.*)$", "\n".join(titles), re.MULTILINE))


def test_the_glossary_has_each_word_once_and_in_order() -> None:
    words = [row[0].lower() for row in table(page("docs/glossary.md"), "word")]
    assert words == sorted(set(words))


def test_the_state_directory_is_the_same_everywhere() -> None:
    """Also in the Python code: a default that stands twice would be two."""
    for name in ("README.md", "docs/cli.md", "docs/state.md", "docs/operations.md"):
        assert set(re.findall(r"/var/lib/[\w-]+", page(name))) == {DEFAULT_STATE_DIR}, name
    stated = {
        path.name
        for path in (ROOT / "vpcctl").rglob("*")
        if path.is_file() and path.suffix in (".py", ".service") and "/var/lib/" in path.read_text()
    }
    assert stated == {"names.py"}


def test_the_table_of_other_programs_is_that_of_their_tests() -> None:
    lines = page("docs/coexistence.md").splitlines()
    assert [line for line in lines if line.startswith("|")] == matrix.table()
    pairs = [(row.program, row.event) for row in matrix.ROWS]
    assert pairs == [(program, event) for program in matrix.VERSIONS for event in matrix.EVENTS]


# Archaic or indirect phrases that readers stumbled over.
UNCLEAR = re.compile(
    r"\b(mend|mends|mended|mending|there is no|there is none|what was begun|published no more|peered no more|any but|"
    r"to play by yourself|say --yes|is not told|are not told|since more than|finishing what|cannot be mended)\b",
    re.IGNORECASE,
)
FOR_READERS = (
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "rulesets/*.md", "state/README.md"),
    *("docs/**/*", "vpcctl/**/*"),
)


def test_no_text_for_readers_has_an_unclear_phrase() -> None:
    files = [path for pattern in FOR_READERS for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    texts = {path: path.read_text() for path in files if path.suffix != ".pyc"}
    assert len(texts) > 100
    found = [
        f"{path.relative_to(ROOT)}: {phrase}"
        for path, text in texts.items()
        for phrase in UNCLEAR.findall(" ".join(text.split()))
    ]
    assert found == []


@pytest.mark.parametrize("text", ["There is\nno other path", "It MENDS it", "any but tcp/443", "pass or say --yes"])
def test_an_unclear_phrase_is_noticed(text: str) -> None:
    assert UNCLEAR.search(" ".join(text.split()))
    assert not UNCLEAR.search("Amend it; there is nothing left of the recommended remedy")
