"""Graphviz' program `dot`, which lays a graph out: its text in, an SVG image out."""

from __future__ import annotations

import re
import subprocess

from vpcctl.errors import KernelError

PROGRAM = "dot"
# Graphviz colours for white paper; these rules make the image readable in the dark, too.
_STYLE = """<style>
.graph > polygon { fill: none; stroke: none }
.node path, .node ellipse { fill: #ffffff }
.cluster polygon { fill: #f3f5f7; stroke: #9aa4ad }
@media (prefers-color-scheme: dark) {
  svg { background: #15181c }
  text { fill: #e8eaed }
  .node path, .node ellipse { fill: #23282e; stroke: #9aa4ad }
  .cluster polygon { fill: #1b1f24; stroke: #59636e }
  .edge path { stroke: #9aa4ad }
  .edge polygon { fill: #9aa4ad; stroke: #9aa4ad }
}
</style>
"""


def svg(text: str) -> str:
    """The image of a graph in Graphviz' language; KernelError if the program is missing or refuses it."""
    try:
        done = subprocess.run([PROGRAM, "-Tsvg"], input=text, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise KernelError(
            "dot, which lays out images, was not found; install graphviz, or use --format mermaid or dot"
        ) from error
    except subprocess.CalledProcessError as error:
        raise KernelError("Graphviz did not draw the graph", error.stderr.strip()) from error
    return re.sub(r"(<svg\b[^>]*>\n?)", lambda head: head[1] + _STYLE, done.stdout, count=1)
