"""From samples to ratios, documents and charts.  tests/lab/test_benchmarks.py runs the benchmarks."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import charts, install
from benchmarks.profiles import IMPORTED
from benchmarks.results import Comparison, Report, alternate, command, finish
from benchmarks.rivals import SkipComparison, firewalls, require
from benchmarks.streams import Outcome

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
COMPARED = Comparison("attach <one>", "s", "plugin", {"plugin": [1.0, 4.0, 2.0], "ours": [9.0, 3.0, 1.0]})


def bars(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [found for found in root.iter(f"{SVG}rect") if found.attrib["class"] != "page"]


def document() -> dict[str, Any]:
    found: dict[str, Any] = Report("commands", [COMPARED], {"rules": 3}, {"podman": "not installed"}).to_json()
    return found


def test_ratios_are_those_of_medians() -> None:
    assert COMPARED.medians == {"plugin": 2.0, "ours": 3.0}
    assert COMPARED.ratios == {"ours": 1.5}


@pytest.mark.parametrize("samples", [{"ours": [1.0]}, {"plugin": [1.0], "ours": []}])
def test_a_side_without_samples_is_an_error(samples: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="no samples"):
        Comparison("attach", "s", "plugin", samples)


def test_sides_take_turns_and_each_turn_starts_with_another_side() -> None:
    called: list[str] = []

    def side(name: str) -> float:
        called.append(name)
        return float(len(called))

    samples = alternate(3, {name: (lambda name=name: side(name)) for name in "abc"})
    assert "".join(called) == "abcbcacab"
    assert samples["a"] == [1.0, 6.0, 8.0]


def test_a_document_has_machine_versions_command_and_figures(tmp_path: Path) -> None:
    file = tmp_path / "new" / "found.json"
    finish(Report("commands", [COMPARED], {"rate": 0.123456}, {"podman": "not installed"}), file)
    found = json.loads(file.read_text())
    assert found["command"].startswith("./run bench commands")
    assert {"processor", "cores", "memory_gib", "kernel"} == set(found["machine"])
    assert {"vpcctl", "python", "nft", "ip"} <= set(found["versions"])
    assert found["comparisons"][0]["ratios"] == {"ours": 1.5}
    assert found["comparisons"][0]["samples"]["ours"] == [9.0, 3.0, 1.0]
    assert found["figures"] == {"rate": 0.1235}
    assert found["skipped"] == {"podman": "not installed"}


@pytest.mark.parametrize("place", [["--json", "/run/found.json"], ["--json=/run/found.json"], []])
def test_the_command_of_a_document_is_without_the_place_of_its_file(place: list[str]) -> None:
    assert command("commands", ["1", *place, "3"]) == "./run bench commands 1 3"


def test_a_missing_program_is_named() -> None:
    with pytest.raises(SkipComparison, match=r"^not installed: no-such-program$"):
        require("sh", "no-such-program")


def test_the_sides_of_a_comparison_of_firewalls_get_the_same_number_of_different_rules() -> None:
    made = firewalls.rules(500)
    assert len({(rule.source, rule.protocol, rule.low, rule.high) for rule in made}) == 500
    assert made[-1] == firewalls.MEASURED
    assert all(1 <= rule.low <= rule.high <= 65_535 for rule in made)


def test_only_units_that_are_not_there_are_masked(tmp_path: Path) -> None:
    installed, own = tmp_path / "installed", tmp_path / "own"
    installed.mkdir()
    (installed / "podman.socket").touch()
    own.mkdir()
    (own / "podman.service").touch()
    masked = install.mask(installed, own)
    assert "firewalld.service" in masked
    assert not {"podman.socket", "podman.service"} & set(masked)
    assert (own / "firewalld.service").readlink() == Path("/dev/null")


def test_lost_packets_and_gaps() -> None:
    outcome = Outcome(sent=5, longest_pause=0.1, arrived=((1.0, 1.5), (3.0, 3.1), (2.0, 2.1)), overflowed=1)
    assert outcome.lost == 1
    assert outcome.longest_gap == pytest.approx(1.0)
    assert outcome.longest_transit == pytest.approx(0.5)


def test_times_of_imports_are_read() -> None:
    assert IMPORTED.findall("import time:       120 |       1300 |   vpcctl.names\n")[0][3] == "vpcctl.names"


# --- Charts -----------------------------------------------------------------------------------------------------------


def test_bars_of_a_chart_are_as_long_as_their_medians() -> None:
    root = ElementTree.fromstring(charts.chart(document()))
    plugin, ours = (float(bar.attrib["width"]) for bar in bars(root))
    assert ours / plugin == pytest.approx(1.5, rel=0.01)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"attach <one>", "plugin", "ours", "2.00 s", "3.00 s, 1.50 ×"} <= set(texts)
    assert "prefers-color-scheme: dark" in charts.chart(document())


def test_nothing_of_a_chart_overlaps_or_sticks_out() -> None:
    found = document()
    found["comparisons"] *= 3
    root = ElementTree.fromstring(charts.chart(found))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    places = [(float(bar.attrib["y"]), float(bar.attrib["height"])) for bar in bars(root)]
    assert len(places) == 6
    assert all(y + tall <= below for (y, tall), (below, _) in pairwise(places))
    assert places[-1][0] + places[-1][1] < height
    assert all(float(bar.attrib["x"]) + float(bar.attrib["width"]) < width for bar in bars(root))


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no comparison"):
        charts.chart(document(), only="detach")


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [(0.0205, "s", "20.5 ms"), (0.5, "s", "500 ms"), (33.21, "s", "33.2 s"), (7119.0, "ns", "7,119 ns")],
)
def test_amounts(value: float, unit: str, words: str) -> None:
    assert charts.amount(value, unit) == words


def test_every_program_that_the_documents_name_exists() -> None:
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    pages = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"\./run bench ([a-z]+)", page.read_text())}
    assert {"commands", "compare", "charts"} <= named
    assert named <= programs
