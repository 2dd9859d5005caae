"""What the modules may touch: Linux is behind `vpcctl.kernel`, and the middle is pure."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("vpcctl/**/*.py"))

LINUX = {"pyroute2", "nftables", "subprocess", "ctypes"}
MAY_START_PROCESSES = {"vpcctl/lab.py", "vpcctl/demo_stage.py"}

PURE = {f"vpcctl/{name}.py" for name in "errors names model policy host meaning space nft topology plan".split()}
PURE |= {path for path in SOURCES if path.startswith(("vpcctl/compiler/", "vpcctl/spec/"))}
EDGES = {"vpcctl.kernel", "vpcctl.state", "vpcctl.cli", "os", "socket"}

REGISTRIES = [".".join(parts) for parts in (
    ("pypi", "org"), ("python" + "hosted", "org"), ("deb", "debian", "org"), ("security", "debian", "org"),
    ("registry", "npmjs", "org"), ("crates", "io"), ("proxy", "golang", "org"), ("conda", "anaconda", "org"),
    ("pkg", "dev"),
)]  # fmt: skip


def imports(path: str, source: str) -> Iterator[str]:
    """Every dotted name that the module at `path` imports, at its top or anywhere in it."""
    package = Path(path).parent.parts
    for node in ast.walk(ast.parse(source, path)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package[: len(package) - level + 1] if level else ()
                origin = ".".join([*above, *([module] if module else [])])
                yield from (f"{origin}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def imports_of(forbidden: set[str], path: str, source: str) -> list[str]:
    """Those imports that are, or are inside, a forbidden module."""
    return [name for name in imports(path, source) if any(f"{name}.".startswith(f"{root}.") for root in forbidden)]


def kernel_paths(source: str) -> list[str]:
    """String literals, f-strings and bytes included, that begin like a path of procfs or sysfs."""
    literals = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    texts = (value.decode("latin-1") if isinstance(value, bytes) else value for value in literals)
    return [text for text in texts if isinstance(text, str) and re.match(r"/(proc|sys)(/|$)", text)]


def registries(text: str) -> list[str]:
    """Host names of package registries: a checkout installs from whatever the machine is set up to use."""
    return [host for host in REGISTRIES if re.search(rf"(?<![\w-]){re.escape(host)}(?![\w-])", text, re.IGNORECASE)]


def unpinned(asked: list[str], constraints: str) -> list[str]:
    """Requirements for which `constraints`, all of whose lines must be NAME==VERSION, has no version that fits."""
    lines = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in constraints.splitlines()]
    assert all(lines), "a line of constraints.txt is not NAME==VERSION"
    pins = {canonicalize_name(line[1]): line[2] for line in lines if line}
    wanted = [(Requirement(line), pins.get(canonicalize_name(Requirement(line).name))) for line in asked]
    return [str(requirement) for requirement, pin in wanted if pin is None or pin not in requirement.specifier]


def touches_linux(path: str, source: str) -> list[str]:
    forbidden = LINUX - {"subprocess"} if path in MAY_START_PROCESSES else LINUX
    return imports_of(forbidden, path, source) + kernel_paths(source)


@pytest.mark.parametrize("path", [path for path in SOURCES if not path.startswith("vpcctl/kernel/")])
def test_only_the_kernel_package_touches_linux(path: str) -> None:
    assert not touches_linux(path, (ROOT / path).read_text())


@pytest.mark.parametrize("path", sorted(PURE))
def test_the_middle_knows_no_edge(path: str) -> None:
    assert not imports_of(EDGES, path, (ROOT / path).read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "tests/pure").glob("*.py")), ids=lambda path: path.name)
def test_no_pure_test_makes_the_machines_kernel_itself(path: Path) -> None:
    makers = {"vpcctl.kernel.linux.LinuxKernel", "vpcctl.cli.session.linux_kernel"}
    assert not imports_of(makers, path.relative_to(ROOT).as_posix(), path.read_text())


def test_no_tracked_file_names_a_package_registry() -> None:
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    found = {path.relative_to(ROOT).as_posix(): registries(path.read_text(errors="replace")) for path in files}
    assert not {name: hosts for name, hosts in found.items() if hosts}


def test_constraints_pin_everything_that_the_project_asks_for() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)
    extras = table["project"]["optional-dependencies"].values()
    asked = [*table["build-system"]["requires"], *table["project"]["dependencies"], *chain.from_iterable(extras)]
    assert not unpinned(asked, (ROOT / "constraints.txt").read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import pyroute2.netns",
        "from nftables import Nftables",
        "def late():\n    import subprocess as sp",
        "import importlib\nimportlib.import_module('ctypes')",
        "open('/proc/self/status')",
        "path = f'/proc/{pid}/ns/net'",
        "os.open(b'/sys', 0)",
    ],
)
def test_touching_linux_is_noticed(source: str) -> None:
    assert touches_linux("vpcctl/model.py", source)


def test_only_listed_modules_may_start_processes() -> None:
    assert not touches_linux("vpcctl/lab.py", "import subprocess")
    assert touches_linux("vpcctl/lab.py", "import ctypes") == ["ctypes"]
    assert not touches_linux("vpcctl/cli/main.py", "from vpcctl import nft, processes\nname = '/system/proc'")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vpcctl/plan.py", "import os.path"),
        ("vpcctl/plan.py", "from vpcctl import state"),
        ("vpcctl/plan.py", "from .kernel.linux import observe"),
        ("vpcctl/compiler/levels.py", "from ..cli import main"),
        ("vpcctl/compiler/__init__.py", "from .. import kernel"),
        ("vpcctl/spec/fields.py", "if True:\n    from socket import AF_INET"),
    ],
)
def test_an_edge_in_the_middle_is_noticed(path: str, source: str) -> None:
    assert imports_of(EDGES, path, source)


def test_a_neighbour_is_no_edge() -> None:
    assert not imports_of(EDGES, "vpcctl/compiler/levels.py", "from . import state\nfrom ..space import Box")


def test_a_package_registry_is_noticed() -> None:
    host = REGISTRIES[0]
    assert registries(f"see https://{host}/simple") == registries(f"Files.{host.upper()}") == [host]
    assert not registries(f"{host}anization my{host}")


def test_a_missing_or_unfit_pin_is_noticed() -> None:
    pins = "click==8.5.1\npip-nftables==1.0.2.post1\n"
    assert not unpinned(["click>=8.1,<9", "pip_nftables>=1.0.2,<2"], pins)
    assert unpinned(["click>=9", "pytest"], pins) == ["click>=9", "pytest"]
    with pytest.raises(AssertionError, match="NAME==VERSION"):
        unpinned([], "click @ file:///tmp/click.whl")
