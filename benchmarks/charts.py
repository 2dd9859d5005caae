"""Charts of benchmark results: one SVG for each JSON file, readable on light and on dark pages.

    ./run bench charts [FILE…] [--to FOLDER] [--only TEXT]

FILE is the JSON of a benchmark (default: all of benchmarks/results). Bars are medians; all bars of one comparison have
the same scale.  The reference is grey; the number behind another bar is its ratio to the reference.  The charts are
plain SVG without a library: bars need none, and libraries fix their colours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.results import FOLDER

CHARTS = Path(__file__).parents[1] / "docs/charts"
WIDTH, LABELS, VALUES = 760, 300, 150
ROW, BAR, HEADING, MARGIN = 24, 14, 34, 12
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.heading { font-weight: 600 } .note, .value { fill: #59636e }
.bar { fill: #0969da } .reference { fill: #8c959f } .page { fill: #ffffff }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .note, .value { fill: #b7bdc8 } .bar { fill: #4493f8 } .reference { fill: #8c959f }
.page { fill: #0d1117 }
}
"""


def chart(report: dict[str, Any], only: str = "") -> str:
    """The comparisons of a report whose name contains `only`."""
    comparisons = [comparison for comparison in report["comparisons"] if only in comparison["name"]]
    if not comparisons:
        raise ValueError("no comparison to draw")
    parts: list[str] = []
    top = MARGIN
    for comparison in comparisons:
        parts += _bars(comparison, top)
        top += HEADING + ROW * len(comparison["medians"])
    machine, versions = report["machine"], report["versions"]
    kernel = ".".join(machine["kernel"].split(".")[:2])
    note = f"{machine['cores']} cores, Linux {kernel}, Python {versions['python']}; {report['command']}"
    parts.append(_text(MARGIN, top + ROW - 6, note, "note"))
    height = top + ROW + MARGIN
    title = escape(f"{report['program']}: {'; '.join(comparison['name'] for comparison in comparisons)}")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    # The page's colours may differ from those that the reader's system prefers, so the chart has its own background.
    page = f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>'
    return "\n".join([head, f"<title>{title}</title>", f"<style>{STYLE}</style>", page, *parts, "</svg>", ""])


def _bars(comparison: dict[str, Any], top: int) -> Iterator[str]:
    """A heading and a bar for each side."""
    medians, ratios = comparison["medians"], comparison["ratios"]
    yield _text(MARGIN, top + HEADING - 14, comparison["name"], "heading")
    room, most = WIDTH - LABELS - VALUES - MARGIN, max(medians.values())
    for place, (side, value) in enumerate(medians.items()):
        y = top + HEADING + ROW * place
        kind = "reference" if side == comparison["reference"] else "bar"
        width = max(1.0, room * value / most) if most else 1.0
        yield _text(LABELS - 8, y + 11, side, "side", "end")
        yield f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
        ratio = f", {ratios[side]:.2f} ×" if side in ratios else ""
        yield _text(LABELS + width + 6, y + 11, amount(value, comparison["unit"]) + ratio, "value")


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def amount(value: float, unit: str) -> str:
    """Three digits with their unit; times below one second in milliseconds."""
    if unit == "s" and value < 1:
        value, unit = value * 1000, "ms"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def main() -> None:
    parser = argparse.ArgumentParser(
        "./run bench charts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--to", type=Path, default=CHARTS, metavar="FOLDER", help="default: docs/charts")
    parser.add_argument("--only", default="", metavar="TEXT", help="draw only comparisons whose name contains TEXT")
    options = parser.parse_args()
    files = options.files or sorted(FOLDER.glob("*.json"))
    if not files:
        raise SystemExit(f"no figures in {FOLDER}; run a benchmark first: ./run bench commands")
    options.to.mkdir(parents=True, exist_ok=True)
    for file in files:
        try:
            text = chart(json.loads(file.read_text()), options.only)
        except ValueError as error:
            print(f"{file}: {error}")
            continue
        target = options.to / f"{file.stem}.svg"
        target.write_text(text)
        print(f"written: {target}")


if __name__ == "__main__":
    main()
