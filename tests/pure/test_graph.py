"""The network as a graph: everything is in it, and no word of a user is read as the language of the drawing program."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import worlds
from tests.story import policy, told
from vpcctl.analysis.graph import INTERNET, LISTED, Edge, Graph, Vertex, dot, drawn, mermaid
from vpcctl.cli import main
from vpcctl.documents.environment import read_environment
from vpcctl.errors import ConflictError
from vpcctl.model.network import World

STORY = "peer them"


def test_a_world_is_drawn() -> None:
    graph = drawn(told(STORY), "one")
    assert [cluster.name for cluster in graph.clusters] == ["one", "two"]
    assert graph.clusters[0].vertices[:2] == (
        Vertex("one/", ("router",), "router"),
        Vertex("one/web", ("web", "10.0.0.0/28 public", "policy web.json", "web 10.0.0.2"), "subnet"),
    )
    # Of a peer that was not asked for only the router is there.
    assert [vertex.name for vertex in graph.clusters[1].vertices] == ["two/"]
    assert graph.vertices == (Vertex(INTERNET, (INTERNET,), "outside"),)
    assert Edge("one/", "two/", ("peering",)) in graph.edges
    assert Edge("one/", INTERNET, ("source NAT",), directed=True) in graph.edges
    assert Edge(INTERNET, "one/web", ("tcp/8080 to web:80",), directed=True) in graph.edges


def test_the_policy_of_a_vpc_is_drawn() -> None:
    world = policy({"subnet": "*", "ingress": []})(told(STORY))
    router, web, db = drawn(world, "one").clusters[0].vertices
    assert router.lines == ("router", "policy web.json")
    assert (web.lines[2], db.lines[2]) == ("policy web.json", "policy of the VPC")


def test_a_vpc_that_does_not_exist_is_not_drawn() -> None:
    with pytest.raises(ConflictError, match="VPC 'three' not found"):
        drawn(told(STORY), "three")


def test_many_instances_are_counted() -> None:
    instances = [{"name": f"i{number}"} for number in range(LISTED + 3)]
    subnet = {"name": "web", "cidr": "10.0.1.0/24", "type": "private", "instances": instances}
    document = {"vpcs": [{"name": "one", "cidr": "10.0.0.0/16", "subnets": [subnet]}]}
    [cluster] = drawn(read_environment(document, "e.json", lambda path: ({}, path))).clusters
    lines = cluster.vertices[1].lines
    assert (len(lines), lines[-1]) == (3 + LISTED + 1, "… and 3 more")


HOSTILE = ('a"b.json', "a\\", 'x"]; evil [label="', "</text><script>", "a\nb", "end", "#quot;", "`x`", "|y|", "é{}<br>")


@pytest.mark.parametrize("words", HOSTILE)
def test_words_of_users_stay_words(words: str) -> None:
    graph = Graph((), (Vertex("n", (words, "second"), "subnet"),), (Edge("n", "n", (words,)),))
    plain = words.replace("\n", "")
    strings = re.findall(r'label="((?:[^"\\]|\\.)*)"', dot(graph))
    read = [re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], one) for one in strings]
    assert read == [f"{plain}\nsecond", plain]
    # Nothing but the text stands outside the quotes.
    assert re.sub(r'"(?:[^"\\]|\\.)*"', '""', dot(graph)) == re.sub(
        r'"(?:[^"\\]|\\.)*"', '""', dot(Graph((), (Vertex("n", ("x", "y"), "subnet"),), (Edge("n", "n", ("x",)),)))
    )
    first, second = re.findall(r'"([^"]*)"', mermaid(graph))
    assert [html.unescape(re.sub(r"#(\d+);", r"&#\1;", one)) for one in (first, second)] == [
        f"{plain}<br>second",
        plain,
    ]


@settings(max_examples=50, deadline=None)
@given(worlds.worlds(), st.booleans())
def test_everything_is_in_the_graph(world: World, text: bool) -> None:
    graph = drawn(world)
    vertices = {vertex.name: vertex for cluster in graph.clusters for vertex in cluster.vertices}
    for vpc in world.vpcs:
        for subnet in vpc.subnets:
            lines = vertices[f"{vpc.name}/{subnet.name}"].lines
            assert lines[0] == subnet.name
            assert {line.split()[0] for line in lines[3:]} == {one.name for one in subnet.instances}
    named = {one.name for one in graph.vertices} | vertices.keys()
    assert {end for edge in graph.edges for end in (edge.tail, edge.head)} <= named
    assert sum("peering" in edge.lines for edge in graph.edges) == len(world.peerings)
    published = [line for edge in graph.edges if edge.tail == INTERNET for line in edge.lines]
    assert len(published) == sum(len(vpc.publications) for vpc in world.vpcs)
    written = dot(graph) if text else mermaid(graph)
    arrow = r" (->|---|-->)"
    assert len(re.findall(arrow, written)) == len(graph.edges)


def test_the_name_of_the_file_chooses_the_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.json").write_text('{"vpcs": [{"name": "shop", "cidr": "10.0.0.0/16"}]}')

    def run(*words: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["graph", "--environment", "e.json", *words])
        read = capsys.readouterr()
        assert caught.value.code == status, read
        return read.out + read.err

    assert run().startswith("flowchart LR\n")
    assert run("shop", "--format", "dot").startswith("digraph vpcctl {\n")
    for name, begin in (("n.gv", "digraph"), ("n.dot", "digraph"), ("n.mmd", "flowchart"), ("n.txt", "flowchart")):
        assert run("--output", name) == ""
        assert Path(name).read_text().startswith(begin)
    monkeypatch.setenv("PATH", "")
    assert "install graphviz, or use --format mermaid or dot" in run("--output", "n.svg", status=5)
    assert not Path("n.svg").exists()
    assert "VPC 'shopp' not found" in run("shopp", status=4)
    run("--output", "no/such/place.gv", status=2)
