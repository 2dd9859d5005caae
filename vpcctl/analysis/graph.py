"""The network as a graph: routers, subnets with their instances, peerings, published ports and ways out.

Where everything stands is left to Graphviz or Mermaid, which read the texts that this module writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from vpcctl.analysis.rendering import service_in_words
from vpcctl.model.network import Publication, Subnet, Vpc, World, port_range
from vpcctl.values import dataclass

# A vertex lists so many instances, an edge so many ports; the others are counted.
LISTED = 12
INTERNET = "internet"


@dataclass(frozen=True, slots=True)
class Vertex:
    """A router, a subnet or the internet; `lines` are what it says, the first one its title."""

    name: str
    lines: tuple[str, ...]
    kind: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """A VPC with its vertices."""

    name: str
    title: str
    vertices: tuple[Vertex, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """A way from one vertex to another, or both ways unless it is `directed`."""

    tail: str
    head: str
    lines: tuple[str, ...] = ()
    directed: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """What is drawn; `vertices` stand outside all VPCs."""

    clusters: tuple[Cluster, ...]
    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]


def drawn(world: World, vpc: str | None = None) -> Graph:
    """The graph of a world, or of one VPC with the routers of its peers; ConflictError if it does not exist."""
    chosen = world.vpcs if vpc is None else (world.vpc(vpc),)
    names = {one.name for one in chosen}
    pairs = [pair for pair in world.peerings if names & {pair.one, pair.other}]
    beside = {name for pair in pairs for name in (pair.one, pair.other)} - names
    clusters = [_cluster(one) for one in chosen]
    clusters += [Cluster(one.name, _title(one), (_router(one),)) for one in world.vpcs if one.name in beside]
    edges = [edge for one in chosen for edge in _edges(one)]
    edges += [Edge(_router_name(pair.one), _router_name(pair.other), ("peering",)) for pair in pairs]
    outside = (Vertex(INTERNET, (INTERNET,), "outside"),) if any(INTERNET in (e.tail, e.head) for e in edges) else ()
    return Graph(tuple(clusters), outside, tuple(edges))


def _title(vpc: Vpc) -> str:
    return f"VPC {vpc.name} {' '.join(map(str, vpc.prefixes))}"


def _router_name(vpc: str) -> str:
    return f"{vpc}/"


def _router(vpc: Vpc, *more: str) -> Vertex:
    return Vertex(_router_name(vpc.name), ("router", *more), "router")


def _cluster(vpc: Vpc) -> Cluster:
    own = () if vpc.policy is None else (f"policy {vpc.policy.file}",)
    vertices = (_router(vpc, *own), *(_box(vpc, subnet) for subnet in vpc.subnets))
    return Cluster(vpc.name, _title(vpc), vertices)


def _box(vpc: Vpc, subnet: Subnet) -> Vertex:
    kind = "public" if subnet.public else "private, NAT gateway" if subnet.nat_gateway else "private"
    none = "no policy" if vpc.policy is None else "policy of the VPC"
    policy = none if subnet.policy is None else f"policy {subnet.policy.file}"
    instances = [f"{one.name} {' '.join(map(str, one.addresses))}" for one in subnet.instances]
    about = (subnet.name, f"{' '.join(map(str, subnet.prefixes))} {kind}", policy)
    return Vertex(f"{vpc.name}/{subnet.name}", (*about, *_counted(instances)), "subnet")


def _counted(lines: list[str]) -> list[str]:
    more = len(lines) - LISTED
    return lines if more <= 0 else [*lines[:LISTED], f"… and {more} more"]


def _edges(vpc: Vpc) -> Iterator[Edge]:
    router = _router_name(vpc.name)
    for subnet in vpc.subnets:
        yield Edge(router, f"{vpc.name}/{subnet.name}")
    if any(subnet.reaches_internet for subnet in vpc.subnets):
        yield Edge(router, INTERNET, ("source NAT",), directed=True)
    published: dict[str, list[str]] = defaultdict(list)
    for item in vpc.publications:
        published[vpc.subnet_of(item.instance).name].append(_published(item))
    for name, lines in published.items():
        yield Edge(INTERNET, f"{vpc.name}/{name}", tuple(_counted(lines)), directed=True)


def _published(item: Publication) -> str:
    port = port_range(item.port, item.count)
    called = service_in_words(item.protocol, None) + f"/{port}"
    at = f"{item.address} " if item.address is not None else ""
    return f"{at}{called} to {item.instance}:{port_range(item.target_port, item.count)}"


# --- Graphviz ---------------------------------------------------------------------------------------------------------

_SHAPES = {
    "router": 'shape=ellipse class="router"',
    "subnet": 'shape=box style="rounded" class="subnet"',
    "outside": 'shape=ellipse style="dashed" class="outside"',
}


def dot(graph: Graph) -> str:
    """The graph in the language of Graphviz (graphviz.org/doc/info/lang.html)."""
    return "\n".join(_dot(graph)) + "\n"


def _dot(graph: Graph) -> Iterator[str]:
    yield "digraph vpcctl {"
    yield '  graph [rankdir=LR nodesep=0.15 fontname="sans-serif" compound=true];'
    yield '  node [fontname="sans-serif" fontsize=11]; edge [fontname="sans-serif" fontsize=9];'
    for number, cluster in enumerate(graph.clusters):
        yield f"  subgraph cluster_{number} {{"
        yield f"    label={_quoted([cluster.title])};"
        yield from (f"    {_quoted([vertex.name])} [{_shape(vertex)}];" for vertex in cluster.vertices)
        yield "  }"
    # The internet stands at the side, whatever leads there.
    yield from (f"  {{ rank=source; {_quoted([vertex.name])} [{_shape(vertex)}]; }}" for vertex in graph.vertices)
    for edge in graph.edges:
        way = "" if edge.directed else " dir=none"
        way += " constraint=false" if edge.head == INTERNET else ""
        yield f"  {_quoted([edge.tail])} -> {_quoted([edge.head])} [label={_quoted(edge.lines)}{way}];"
    yield "}"


def _shape(vertex: Vertex) -> str:
    return f"label={_quoted(vertex.lines)} {_SHAPES[vertex.kind]}"


def _quoted(lines: Iterable[str]) -> str:
    """A string of Graphviz: a backslash would begin an escape, and control characters have no meaning."""
    plain = ("".join(sign for sign in line if sign.isprintable()) for line in lines)
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in plain) + '"'


# --- Mermaid ----------------------------------------------------------------------------------------------------------


def mermaid(graph: Graph) -> str:
    """The graph in the language of Mermaid (mermaid.js.org, flowcharts), which Markdown viewers draw."""
    return "\n".join(_mermaid(graph)) + "\n"


def _mermaid(graph: Graph) -> Iterator[str]:
    vertices = [vertex for cluster in graph.clusters for vertex in cluster.vertices] + list(graph.vertices)
    # Names of ours may be words of Mermaid's.
    ids = {vertex.name: f"n{number}" for number, vertex in enumerate(vertices)}
    yield "flowchart LR"
    for number, cluster in enumerate(graph.clusters):
        yield f"  subgraph c{number}[{_worded([cluster.title])}]"
        yield from (f"    {_bracketed(ids[vertex.name], vertex)}" for vertex in cluster.vertices)
        yield "  end"
    yield from (f"  {_bracketed(ids[vertex.name], vertex)}" for vertex in graph.vertices)
    for edge in graph.edges:
        arrow = "-->" if edge.directed else "---"
        label = f"|{_worded(edge.lines)}|" if edge.lines else ""
        yield f"  {ids[edge.tail]} {arrow}{label} {ids[edge.head]}"


def _bracketed(name: str, vertex: Vertex) -> str:
    opening, closing = ("([", "])") if vertex.kind in ("router", "outside") else ("[", "]")
    return f"{name}{opening}{_worded(vertex.lines)}{closing}"


def _worded(lines: Iterable[str]) -> str:
    """A text of Mermaid: what its grammar or HTML would read becomes a number (`#35;`), and lines are separated."""
    return '"' + "<br>".join("".join(map(_sign, line)) for line in lines) + '"'


def _sign(sign: str) -> str:
    if not sign.isprintable():
        return ""
    return sign if sign.isalnum() or sign in " -_./:,…" else f"#{ord(sign)};"
