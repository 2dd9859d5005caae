"""What the packages may import, and what they may touch: Linux is behind `kernel`, and the middle is pure."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house import BESIDE, EDGES, PACKAGES, PROCESSES, PURE

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("vpcctl/**/*.py"))

LINUX = {"pyroute2", "nftables", "subprocess", "ctypes"}
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


def package_of(path: str) -> str:
    """The package of a module of ours; empty for one that stands beside the packages."""
    parts = Path(path).parts
    return parts[1] if len(parts) > 2 else ""


def touches_linux(path: str, source: str) -> list[str]:
    forbidden = LINUX - {"subprocess"} if package_of(path) in PROCESSES else LINUX
    return imports_of(forbidden, path, source) + kernel_paths(source)


def upward(path: str, source: str) -> list[str]:
    """What a module imports of ours that is not below it; the two doors to the program may lead anywhere."""
    package = package_of(path)
    if path in ("vpcctl/__main__.py", "vpcctl/__init__.py"):
        return []
    allowed = PACKAGES[: PACKAGES.index(package) + 1] if package else ()
    ours = [name for name in imports(path, source) if f"{name}.".startswith("vpcctl.")]
    return [
        name
        for name in ours
        if not any(f"{name}.".startswith(f"vpcctl.{other}.") for other in allowed)
        and name not in BESIDE
        and name.rpartition(".")[0] not in BESIDE - {"vpcctl"}
        and name != "vpcctl.__version__"
    ]


def test_every_directory_is_a_package_in_its_place() -> None:
    assert {package_of(path) for path in SOURCES} == {"", *PACKAGES}
    assert {path for path in SOURCES if not package_of(path)} == {
        f"vpcctl/{name}.py" for name in ("__init__", "__main__", "digest", "errors", "names", "values")
    }


@pytest.mark.parametrize("path", SOURCES)
def test_no_package_imports_upward(path: str) -> None:
    assert not upward(path, (ROOT / path).read_text())


@pytest.mark.parametrize("path", [path for path in SOURCES if package_of(path) not in EDGES])
def test_only_the_edges_touch_linux(path: str) -> None:
    assert not touches_linux(path, (ROOT / path).read_text())


@pytest.mark.parametrize("path", [path for path in SOURCES if package_of(path) in PURE])
def test_the_middle_does_nothing(path: str) -> None:
    """Only `files` opens any."""
    if path != "vpcctl/documents/files.py":
        assert not imports_of({"os", "socket", "time", "tempfile"}, path, (ROOT / path).read_text())


@pytest.mark.parametrize(("one", "other"), [("analysis", "compiler"), ("compiler", "analysis")])
def test_the_analysis_and_the_compiler_know_nothing_of_each_other(one: str, other: str) -> None:
    """Two models of one policy, each tested against the other: what they share are values and facts of `model`."""
    members = [path for path in SOURCES if package_of(path) == one]
    assert len(members) > 5
    found = {path: imports_of({f"vpcctl.{other}"}, path, (ROOT / path).read_text()) for path in members}
    assert not {path: names for path, names in found.items() if names}


def test_the_oracle_resolves_names_itself() -> None:
    path = "vpcctl/model/oracle.py"
    assert not imports_of({"vpcctl.model.resolve"}, path, (ROOT / path).read_text())


def test_no_name_is_used_twice() -> None:
    """Neither for modules of different packages, nor for public classes."""
    modules = Counter(Path(path).stem for path in SOURCES if package_of(path) and not path.endswith("__init__.py"))
    modules -= Counter(PACKAGES)
    assert not {name for name, count in modules.items() if count > 1}
    classes = Counter(
        node.name
        for path in SOURCES
        for node in ast.parse((ROOT / path).read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not {name for name, count in classes.items() if count > 1}


@pytest.mark.parametrize("path", sorted((ROOT / "tests/pure").glob("*.py")), ids=lambda path: path.name)
def test_no_pure_test_makes_the_machines_kernel_itself(path: Path) -> None:
    makers = {"vpcctl.kernel.linux.LinuxKernel", "vpcctl.engine.machine.linux_kernel"}
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
    assert touches_linux("vpcctl/model/network.py", source)


def test_only_the_lab_may_start_processes() -> None:
    assert not touches_linux("vpcctl/lab/lab.py", "import subprocess")
    assert touches_linux("vpcctl/lab/lab.py", "import ctypes") == ["ctypes"]
    assert not touches_linux("vpcctl/cli/main.py", "from vpcctl import nft, processes\nname = '/system/proc'")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vpcctl/resources/plan.py", "from vpcctl.engine import state"),
        ("vpcctl/resources/plan.py", "from vpcctl import engine"),
        ("vpcctl/resources/plan.py", "from ..kernel.linux import observe"),
        ("vpcctl/compiler/gates.py", "from ..cli import main"),
        ("vpcctl/compiler/__init__.py", "from .. import kernel"),
        ("vpcctl/model/network.py", "if True:\n    from vpcctl.documents.fields import parse_prefix"),
        ("vpcctl/errors.py", "from vpcctl.model.network import World"),
        ("vpcctl/engine/state.py", "def late():\n    import vpcctl.cli"),
        ("vpcctl/engine/controller.py", "def late():\n    from vpcctl.lab.surroundings import stand_in"),
        ("vpcctl/compiler/gates.py", "from vpcctl import Controller"),
    ],
)
def test_an_import_upward_is_noticed(path: str, source: str) -> None:
    assert upward(path, source)


def test_a_neighbour_and_what_is_below_are_no_imports_upward() -> None:
    assert not upward("vpcctl/compiler/gates.py", "from . import nft\nfrom vpcctl.model import policy")
    assert not upward(
        "vpcctl/engine/state.py", "from vpcctl import __version__, names\nfrom vpcctl.errors import StateError"
    )


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
