"""The result of a benchmark as one JSON document: machine, versions, command and figures.

A *comparison* has samples of several sides that do the same work, in turns, within one run.  Its ratios are ratios of
medians.  Ratios can be compared between machines, seconds cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vpcctl

FOLDER = Path(__file__).parent / "results"
# Programs whose versions every document states; a comparison adds those of the programs that it runs.
PROGRAMS = {"nft": ("nft", "--version"), "ip": ("ip", "-Version")}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Samples by side; the other sides are divided by the `reference`."""

    name: str
    unit: str
    reference: str
    samples: Mapping[str, Sequence[float]]

    def __post_init__(self) -> None:
        if not self.samples.get(self.reference) or not all(self.samples.values()):
            raise ValueError(f"{self.name}: a side has no samples")

    @property
    def medians(self) -> dict[str, float]:
        return {side: statistics.median(samples) for side, samples in self.samples.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """Medians divided by the median of the reference."""
        medians = self.medians
        return {side: medians[side] / medians[self.reference] for side in medians if side != self.reference}

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "reference": self.reference,
            "medians": _rounded(self.medians),
            "ratios": _rounded(self.ratios),
            "samples": {side: [_round(sample) for sample in samples] for side, samples in self.samples.items()},
        }


@dataclass(slots=True)
class Report:
    """The results of one run of a program.  `skipped` has the reason for each part that could not run."""

    program: str
    comparisons: list[Comparison] = field(default_factory=list)
    figures: dict[str, float | int | str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "program": self.program,
            "command": command(self.program, sys.argv[1:]),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(),
            "versions": versions() | self.versions,
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "figures": _rounded(self.figures),
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        lines = []
        for comparison in self.comparisons:
            lines.append(f"{comparison.name} ({comparison.unit}, median of {len(_longest(comparison))})")
            width = max(map(len, comparison.samples))
            for side, median in comparison.medians.items():
                ratio = f"{comparison.ratios[side]:6.2f} x" if side in comparison.ratios else "       1"
                lines.append(f"  {side:{width}}  {_round(median):>10}  {ratio}")
        lines += [f"{name}: {_round(value)}" for name, value in self.figures.items()]
        lines += [f"skipped: {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def command(program: str, words: Sequence[str]) -> str:
    """The command that produces the same figures, without the option for the JSON file."""
    kept = [
        word
        for word, before in zip(words, ["", *words], strict=False)
        if word != "--json" and before != "--json" and not word.startswith("--json=")
    ]
    return shlex.join(["./run", "bench", program, *kept])


def _longest(comparison: Comparison) -> Sequence[float]:
    return max(comparison.samples.values(), key=len)


def _round(value: Any) -> Any:
    """Round to four digits, which is more than a noisy machine justifies."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _round(value) for name, value in values.items()}


# --- Machine and versions ---------------------------------------------------------------------------------------------


def machine() -> dict[str, str | int]:
    """The properties on which the figures depend, without anything that identifies this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "kernel": platform.release(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def versions() -> dict[str, str]:
    found = {"vpcctl": vpcctl.__version__, "python": platform.python_version()}
    return found | {name: version(*words) for name, words in PROGRAMS.items()}


def version(*words: str) -> str:
    """The first line of a program's version output."""
    if shutil.which(words[0]) is None:
        return "not installed"
    done = subprocess.run(words, capture_output=True, text=True)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def package_version(package: str) -> str:
    """The version of a Debian package whose programs do not print it."""
    words = ["dpkg-query", "--show", "--showformat=${Version}", package]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- Running ----------------------------------------------------------------------------------------------------------


def alternate(turns: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Samples of sides that take turns; each turn starts with another side."""
    samples: dict[str, list[float]] = {side: [] for side in sides}
    order = list(sides)
    for _ in range(turns):
        for side in order:
            samples[side].append(sides[side]())
        order.append(order.pop(0))
    return samples


def took(*words: str | Path, stdin: str | None = None, env: Mapping[str, str] | None = None) -> float:
    """Seconds of a command, which must succeed."""
    environment = os.environ | dict(env or {})
    started = time.perf_counter()
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, words))}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds


def timed(act: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """The options that all programs have."""
    made = argparse.ArgumentParser(
        f"./run bench {program}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="default: benchmarks/results/PROGRAM.json")
    return made


def in_lab() -> None:
    """Stop outside the lab: benchmarks remove namespaces and tables."""
    if os.environ.get("VPCCTL_LAB") != "1":
        raise SystemExit("benchmarks run in the lab: ./run bench NAME")


def finish(report: Report, file: Path | None) -> None:
    """Print the report and write its JSON."""
    file = file or FOLDER / f"{report.program}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    print(report)
    print(f"written: {file}")
