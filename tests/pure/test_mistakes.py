"""Common mistakes in documents and command lines: each is refused in words that say what to type instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from vpcctl.cli import session
from vpcctl.documents import fields, reading, sources
from vpcctl.documents.environment import read_environment
from vpcctl.documents.exports import EXAMPLE, refuse_export
from vpcctl.documents.policies import read_policies
from vpcctl.errors import DocumentError

# -- Text that is not JSON ---------------------------------------------------------------------------------------------

COMMENT = 'JSON has no comments; remove it (a policy or a rule may have a "description")'
YAML = 'this looks like YAML); vpcctl reads JSON; write {"subnet": "web", "ingress": []}'
COMMA = "JSON has no trailing commas; remove the comma"
NOT_JSON = {
    '\ufeff{"subnet": "web"}': "the file begins with a byte order mark; save it as UTF-8 without BOM",
    '{"subnet": "web" // here\n}': f"this is not JSON (line 1, column 18: a comment (//)); {COMMENT}",
    '// here\n{"subnet": "web"}': f"this is not JSON (line 1, column 1: a comment (//)); {COMMENT}",
    '{\n  # here\n  "subnet": "web"}': f"this is not JSON (line 2, column 3: a comment (#)); {COMMENT}",
    '{"subnet": /* here */ "web"}': f"this is not JSON (line 1, column 12: a comment (/*)); {COMMENT}",
    '["a", /* here */ "b"]': f"this is not JSON (line 1, column 7: a comment (/*)); {COMMENT}",
    "subnet: web\ningress: []\n": f"this is not JSON (line 1, column 1: {YAML}",
    "# the front\nsubnet: web\n": f"this is not JSON (line 1, column 1: {YAML}",
    "---\nsubnet: web\n": f"this is not JSON (line 1, column 1: {YAML}",
    "- subnet: web\n": f"this is not JSON (line 1, column 1: {YAML}",
    'resource "aws_security_group" "web" {\n}': (
        "this is not JSON (line 1, column 1: this looks like Terraform); vpcctl reads JSON; "
        "docs/policy.md describes the fields"
    ),
    "{'subnet': 'web'}": 'this is not JSON (line 1, column 2: a single quote); JSON has double quotes only; write "…"',
    '{"subnet": ‘web’}': 'this is not JSON (line 1, column 12: a curly quote); JSON has double quotes only; write "…"',
    '{"log": True}': "this is not JSON (line 1, column 9: a word that JSON does not have); write true, false or null",
    '{subnet: "web"}': (
        'this is not JSON (line 1, column 2: a field without quotes); write its name in double quotes: "name": …'
    ),
    " \n": "this is not JSON (line 2, column 1: the file is empty); write a JSON object",
    "9" * 6000: "this is not JSON (a number has 6000 digits; at most 100 are allowed)",
}


def refusal(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        reading.parse(text, "web.json")
    return str(caught.value)


@pytest.mark.parametrize("text", NOT_JSON)
def test_text_that_is_not_json_is_refused_with_what_to_write(text: str) -> None:
    assert refusal(text) == f"web.json#: {NOT_JSON[text]}"


@pytest.mark.parametrize(("text", "closing"), [('{"a": [1, 2, ]}', "]"), ('{"a": 1,\n}', "}"), ('[{"a": 1},]', "]")])
def test_a_trailing_comma_is_named(text: str, closing: str) -> None:
    """The column depends on the version of Python: that of the comma, or of what follows it."""
    assert refusal(text).endswith(f": a comma before {closing}); {COMMA}")


def test_a_reader_who_may_not_see_the_file_is_told_the_place_alone() -> None:
    with pytest.raises(DocumentError) as caught:
        reading.parse("secret: yes\n", "web.json")
    assert str(caught.value.problems[0].discreet()) == "web.json#: this is not JSON (line 1, column 1: Expecting value)"


@pytest.mark.parametrize(
    ("encoding", "name"), [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")]
)
def test_other_encodings_are_named(encoding: str, name: str, tmp_path: Path) -> None:
    place = tmp_path / "web.json"
    place.write_bytes('{"subnet": "web"}'.encode(encoding))
    with pytest.raises(DocumentError, match=f"web.json: is text in {name}; save it as UTF-8 without BOM"):
        sources.read_source(place)


@pytest.mark.parametrize("read", [fields.parse_portless, fields.parse_prefix, fields.parse_address])
def test_a_text_of_many_digits_is_refused_without_words_of_python(read: Any) -> None:
    with pytest.raises(ValueError, match="is not a") as caught:
        read("9" * 6000)
    assert len(str(caught.value)) < 200
    assert "sys" not in str(caught.value)


def read_world(document: Any, file: str) -> Any:
    return read_environment(document, file, lambda path: (None, path))


# -- Words of other firewalls and clouds -------------------------------------------------------------------------------

ACTION = "is not an action (allow, deny or reject)"
PROTOCOL = "is not a protocol (tcp, udp, sctp, icmp, icmpv6, any, or a number 0–255)"
PORTS = 'is not a port (1–65535), a range "8000-8080" or "*"'
ENDPOINT = "is not an endpoint (any, internet, a prefix or address, subnet:NAME, instance:NAME, vpc:NAME or set:NAME)"
ALL_PROTOCOLS, ALL_PORTS = 'omit "protocol" for every protocol', 'omit "port" for every port'
TCP = {"action": "allow", "protocol": "tcp"}
ICMP = {"action": "allow", "protocol": "icmp"}
ALLOW = {"action": "allow"}
# A rule, the field that is wrong in it, and the message.
RULES: list[tuple[dict[str, Any], str, str]] = [
    ({"action": "accept"}, "action", f'"accept" {ACTION}; write "allow"'),
    ({"action": "DROP"}, "action", f'"DROP" {ACTION}; write "deny" (no answer) or "reject" (an answer)'),
    ({**ALLOW, "protocol": "all"}, "protocol", f'"all" {PROTOCOL}; {ALL_PROTOCOLS}'),
    ({**ALLOW, "protocol": "-1"}, "protocol", f'"-1" {PROTOCOL}; {ALL_PROTOCOLS}'),
    ({**ALLOW, "protocol": -1}, "protocol", f"-1 {PROTOCOL}; {ALL_PROTOCOLS}"),
    ({**ALLOW, "protocol": "*"}, "protocol", f'"*" {PROTOCOL}; {ALL_PROTOCOLS}'),
    ({**ALLOW, "protocol": "ipv6-icmp"}, "protocol", f'"ipv6-icmp" {PROTOCOL}; write "icmpv6"'),
    ({**ALLOW, "protocol": "gre"}, "protocol", f'"gre" {PROTOCOL}; write 47'),
    ({**ALLOW, "protocol": "tcp/80"}, "protocol", f'"tcp/80" {PROTOCOL}; write "protocol": "tcp", "port": 80'),
    ({**ALLOW, "protocol": "tcp,udp"}, "protocol", f'"tcp,udp" {PROTOCOL}; write one rule for each protocol'),
    ({**ALLOW, "protocol": ["tcp", "udp"]}, "protocol", f'["tcp", "udp"] {PROTOCOL}; write one rule for each protocol'),
    ({**TCP, "port": "http"}, "port", f'"http" {PORTS}; write 80'),
    ({**TCP, "port": "HTTPS"}, "port", f'"HTTPS" {PORTS}; write 443'),
    ({**TCP, "port": "all"}, "port", f'"all" {PORTS}; {ALL_PORTS}'),
    ({**TCP, "port": "80, 443"}, "port", f'"80, 443" {PORTS}; write [80, 443]'),
    ({**TCP, "port": "8000:8010"}, "port", f'"8000:8010" {PORTS}; write "8000-8010"'),
    ({**TCP, "port": "443/tcp"}, "port", f'"443/tcp" {PORTS}; write "protocol": "tcp", "port": 443'),
    ({**TCP, "port": "0-65535"}, "port", f'"0-65535" begins with 0, and ports begin at 1; {ALL_PORTS}'),
    ({**ICMP, "icmp_type": "8"}, "icmp_type", '"8" is not a type of icmp; write 8 or "echo-request"'),
    ({**ICMP, "icmp_type": "77"}, "icmp_type", '"77" is not a type of icmp; write 77, without quotes'),
    ({**ICMP, "icmp_type": "ping"}, "icmp_type", '"ping" is not a type of icmp; write "echo-request"'),
    ({**ALLOW, "source": "*"}, "source", f'"*" {ENDPOINT}; write "any"'),
    (
        {**ALLOW, "source": "sg-0a1b"},
        "source",
        f'"sg-0a1b" {ENDPOINT}; write "subnet:NAME", "instance:NAME" or "set:NAME"',
    ),
    (
        {**ALLOW, "limit": "10/sec"},
        "limit",
        '"10/sec" is not a limit such as "10/second" or "100/minute burst 20"; write "10/second"',
    ),
    ({"target": "ACCEPT"}, "target", "unknown field 'target'; write \"action\""),
    ({**ALLOW, "proto": "tcp"}, "proto", "unknown field 'proto'; write \"protocol\""),
    ({**ALLOW, "comment": "x"}, "comment", "unknown field 'comment'; write \"description\""),
    ({**ALLOW, "src": "any"}, "src", "unknown field 'src'; write \"source\""),
    ({**ALLOW, "from": "any"}, "from", "unknown field 'from'; write \"source\""),
    ({**ALLOW, "dst": "any"}, "dst", "unknown field 'dst'; write \"destination\""),
    ({**ALLOW, "to": "any"}, "to", "unknown field 'to'; write \"destination\""),
    ({**ALLOW, "cidr": "any"}, "cidr", "unknown field 'cidr'; write \"source\""),
    ({**TCP, "ports": [80]}, "ports", "unknown field 'ports'; write \"port\""),
    (
        {**TCP, "from_port": 80},
        "from_port",
        'unknown field \'from_port\'; write "port" with one port or a range "8000-8080"',
    ),
    (
        {**TCP, "source_port": 53},
        "source_port",
        "unknown field 'source_port'; source ports are not supported;"
        ' remove it and write the port of the service as "port"',
    ),
    ({**ALLOW, "state": "NEW"}, "state", "unknown field 'state'; remove it: replies to an allowed flow always pass"),
    (
        {**ALLOW, "priority": 1},
        "priority",
        "unknown field 'priority'; remove it: rules apply in the order of the array, and the first match decides",
    ),
    (
        {**ALLOW, "direction": "in"},
        "direction",
        'unknown field \'direction\'; remove it and put the rule into "ingress" or "egress"',
    ),
]


@pytest.mark.parametrize(("rule", "field", "words"), RULES)
def test_a_foreign_word_in_a_rule_is_refused_with_ours(rule: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_policies({"subnet": "web", "ingress": [rule]}, "web.json")
    assert str(caught.value) == f"web.json#/ingress/0/{field}: {words}"


POLICIES: list[tuple[dict[str, Any], str]] = [
    ({"inbound": []}, "/inbound: unknown field 'inbound'; write \"ingress\""),
    ({"outbound": []}, "/outbound: unknown field 'outbound'; write \"egress\""),
    ({"comment": ""}, "/comment: unknown field 'comment'; write \"description\""),
    ({"rules": []}, '/rules: unknown field \'rules\'; write "ingress" for what enters and "egress" for what leaves'),
    ({"default": {"inbound": "deny"}}, "/default/inbound: unknown field 'inbound'; write \"ingress\""),
    ({"default": {"ingress": "drop"}}, '/default/ingress: "drop" is not a default (allow or deny); write "deny"'),
    ({"egress": [{**ALLOW, "cidr": "any"}]}, "/egress/0/cidr: unknown field 'cidr'; write \"destination\""),
]


@pytest.mark.parametrize(("policy", "words"), POLICIES)
def test_a_foreign_word_in_a_policy_is_refused_with_ours(policy: dict[str, Any], words: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_policies({"subnet": "web", **policy}, "web.json")
    assert str(caught.value) == f"web.json#{words}"


def test_a_set_named_like_a_field_gets_no_hint() -> None:
    with pytest.raises(DocumentError) as caught:
        read_policies({"subnet": "web", "sets": {"protocol": ["all"]}}, "web.json")
    assert str(caught.value) == 'web.json#/sets/protocol/0: "all" is not a prefix such as 10.0.1.0/24'


WEB = {"protocol": "tcp", "port": 8080, "instance": "web"}
PORT_OR_RANGE = 'is not a port (1–65535) or a range "8000-8010"'
PUBLISHED: list[tuple[dict[str, Any], str]] = [
    ({"port": "8080:80"}, f'/port: "8080:80" {PORT_OR_RANGE}; write "port": 8080, "target_port": 80'),
    ({"port": "http"}, f'/port: "http" {PORT_OR_RANGE}; write 80'),
    ({"port": "80"}, f'/port: "80" {PORT_OR_RANGE}; write 80, without quotes'),
    ({"container_port": 80}, "/container_port: unknown field 'container_port'; write \"target_port\""),
]


@pytest.mark.parametrize(("part", "words"), PUBLISHED)
def test_a_foreign_way_to_publish_a_port_is_refused_with_ours(part: dict[str, Any], words: str) -> None:
    subnet = {"name": "web", "cidr": "10.0.1.0/24", "type": "public"}
    vpc = {"name": "shop", "cidr": "10.0.0.0/16", "subnets": [subnet], "publish": [{**WEB, **part}]}
    with pytest.raises(DocumentError) as caught:
        read_environment({"vpcs": [vpc]}, "shop.json", lambda path: (None, path))
    assert str(caught.value) == f"shop.json#/vpcs/0/publish/0{words}"


def test_a_field_by_another_name_is_not_missing_too() -> None:
    with pytest.raises(DocumentError) as caught:
        read_environment(
            {"vpcs": [{"name": "shop", "cidr_block": "10.0.0.0/16"}]}, "shop.json", lambda path: (None, path)
        )
    assert str(caught.value) == "shop.json#/vpcs/0/cidr_block: unknown field 'cidr_block'; write \"cidr\""


OPTIONS = {
    "8080:80": "'8080:80' is not a port (1–65535); use --port 8080 --target-port 80",
    "127.0.0.1:8080:80": (
        "'127.0.0.1:8080:80' is not a port (1–65535); use --port 8080 --target-port 80 --address 127.0.0.1"
    ),
    "8010-8000": "'8010-8000' is an empty range of ports; use 8000-8010",
    "8000-70000": "70000 is not in the range 1<=x<=65535.",
    "80,443": (
        "'80,443' is not a port (1–65535); use one port at a time, as in --port 80, or a range such as 8000-8010"
    ),
    "http": "'http' is not a port (1–65535); use --port 80",
    "53/udp": "'53/udp' is not a port (1–65535); use --port 53 --protocol udp",
    "9" * 6000: f"'{'9' * 40}' is not a port (1–65535); a number is expected",
}


@pytest.mark.parametrize("word", OPTIONS)
def test_a_port_on_the_command_line_is_refused_with_what_to_type(word: str) -> None:
    from vpcctl.cli.instance_commands import publish_port

    option = next(option for option in publish_port.params if option.name == "port")
    with pytest.raises(click.BadParameter) as caught:
        session.PORTS.convert(word, option, click.Context(publish_port))
    assert caught.value.message == OPTIONS[word]


# -- Documents of other products ---------------------------------------------------------------------------------------

KUBERNETES = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "web"},
    "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
}
CALICO = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "GlobalNetworkPolicy",
    "spec": {"ingress": [{"action": "Allow"}]},
}
GROUP = {"GroupId": "sg-1", "IpPermissions": [{"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80}]}
INCUS_RULE = {"action": "allow", "state": "enabled", "protocol": "tcp", "destination_port": "443"}
EXPORTS: list[tuple[str, Any]] = [
    ("the output of `aws ec2 describe-security-groups`", {"SecurityGroups": [GROUP]}),
    ("the output of `aws ec2 describe-security-groups`", [GROUP]),
    ("a Kubernetes NetworkPolicy", KUBERNETES),
    ("a Kubernetes NetworkPolicy", {"apiVersion": "v1", "kind": "List", "items": [KUBERNETES]}),
    ("a Calico policy", CALICO),
    ("a Calico policy", {**CALICO, "kind": "NetworkPolicy"}),
    ("a Cilium policy", {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "spec": {}}),
    ("an Incus network ACL", {"name": "web", "config": {}, "ingress": [INCUS_RULE], "egress": [], "used_by": []}),
    ("an Incus network ACL", {"ingress": [INCUS_RULE]}),
    ("Terraform JSON", {"resource": {"aws_security_group": {"web": {"ingress": []}}}}),
    ("Terraform JSON", {"format_version": "1.0", "terraform_version": "1.9.0", "values": {}}),
    ("the output of `nft --json list ruleset`", {"nftables": [{"metainfo": {"version": "1.0.6"}}]}),
]


@pytest.mark.parametrize(("name", "document"), EXPORTS)
@pytest.mark.parametrize("read", [read_policies, read_world])
def test_a_document_of_another_product_is_named_once(read: Any, name: str, document: Any) -> None:
    with pytest.raises(DocumentError) as caught:
        read(document, "web.json")
    assert str(caught.value).split("\n") == [
        f"web.json#: this is {name}, which vpcctl does not read; write a policy as in docs/policy.md, for example:",
        *EXAMPLE,
    ]


def test_the_example_is_a_policy() -> None:
    assert read_policies(reading.parse("".join(EXAMPLE), "example"), "example")


@pytest.mark.parametrize("document", [[], {}, 7, {"kind": []}, {"resource": []}, {"items": [{}]}, {"ingress": [[]]}])
def test_other_documents_are_not_recognised(document: Any) -> None:
    refuse_export(document, "web.json")


# -- Everything at once ------------------------------------------------------------------------------------------------


def told_of(document: Any) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        read_world(document, "shop.json")
    return [str(problem).removeprefix("shop.json#") for problem in caught.value.problems]


def subnet(name: str, number: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "cidr": f"10.0.{number}.0/24", "type": "private", **more}


def shop(*subnets: Any, **more: Any) -> dict[str, Any]:
    return {"name": "shop", "cidr": "10.0.0.0/16", "subnets": list(subnets), **more}


UNKNOWN = "/peering: unknown field 'peering'; did you mean 'peerings'?"


def allow(source: str) -> dict[str, Any]:
    return {"ingress": [{"action": "allow", "source": source}]}


def test_errors_of_structure_and_of_meaning_are_told_together() -> None:
    web = subnet("web", 1, type="Private", policy={**allow("subnet:dbb"), "inbound": []})
    document = {
        "vpcs": [
            shop(
                web,
                subnet("web", 2, instances=[{"name": "a"}, {"name": "a"}]),
                subnet("db", 1),
                {**subnet("far", 3), "cidr": "10.9.0.0/24"},
                publish=[{"protocol": "tcp", "port": 80, "instance": "b"}, {"protocol": "TCP", "port": 81}],
            ),
            {"name": "shop", "cidr": "10.1.0.0/16", "hardend": True},
        ],
        "peerings": [["shop", "blue"], ["shop"]],
    }
    assert told_of(document) == [
        "/vpcs/0/subnets/0/type: \"Private\" is not a subnet type (public or private); did you mean 'private'?",
        "/vpcs/0/subnets/0/policy/ingress/0/source: subnet:dbb names nothing: no subnet 'dbb' is known here;"
        " did you mean 'db'?",
        "/vpcs/0/subnets/0/policy/inbound: unknown field 'inbound'; write \"ingress\"",
        "/vpcs/0/subnets/1/name: subnet web of VPC shop is already in this document, at #/vpcs/0/subnets/0; keep one",
        "/vpcs/0/subnets/1/instances/1/name: instance a of VPC shop is already in this document, at"
        " #/vpcs/0/subnets/1/instances/0; keep one",
        "/vpcs/0/subnets/2/cidr: subnet db: 10.0.1.0/24 overlaps subnet web (10.0.1.0/24)",
        "/vpcs/0/subnets/3/cidr: subnet far: 10.9.0.0/24 is not inside VPC shop (10.0.0.0/16)",
        "/vpcs/0/publish/0/instance: port 80 is published for instance b, which does not exist; did you mean 'db'?",
        "/vpcs/0/publish/1: the field 'instance' is missing: a name (1–32 of A-Z a-z 0-9 - _, beginning with a"
        " letter or digit) is expected",
        "/vpcs/0/publish/1/protocol: \"TCP\" is not a protocol with ports (tcp, udp or sctp); did you mean 'tcp'?",
        "/vpcs/1/name: VPC shop is already in this document, at #/vpcs/0; keep one",
        "/vpcs/1/hardend: unknown field 'hardend'; did you mean 'hardened'?",
        "/peerings/0/1: VPC 'blue' not found; expected: shop",
        '/peerings/1: ["shop"] is not a pair of VPC names',
    ]


# A mistake, and the only pointer that is reported: its consequences are not reported as well.
NO_CASCADES: list[tuple[dict[str, Any], str]] = [
    (
        {"vpcs": [shop({"name": "db", "cidr": "10.0.1.0/24"}, subnet("web", 2, policy=allow("subnet:db")))]},
        "/vpcs/0/subnets/0",
    ),
    ({"vpcs": [shop("db", subnet("web", 2, policy=allow("subnet:db")))]}, "/vpcs/0/subnets/0"),
    (
        {"vpcs": [shop(subnet("web", 2, instances={}, policy=allow("instance:a")))]},
        "/vpcs/0/subnets/0/instances",
    ),
    (
        {
            "vpcs": [
                shop(
                    subnet("web", 2, instanes=[{"name": "a"}]),
                    publish=[{"protocol": "tcp", "port": 80, "instance": "a"}],
                )
            ]
        },
        "/vpcs/0/subnets/0/instanes",
    ),
    (
        {"vpcs": [shop(subnet("web", 2, policy=allow("set:office")), sets={"office": "10.0.0.0/8"})]},
        "/vpcs/0/sets/office",
    ),
    ({"vpcs": [shop(subnet("web", 2, policy=allow("set:office")), set={"office": []})]}, "/vpcs/0/set"),
    ({"vpcs": [shop(subnet("web", 2, policy=allow("set:office")), sets=7)]}, "/vpcs/0/sets"),
    ({"vpcs": [shop(subnet("web", 2, policy={**allow("set:x"), "Sets": {"x": []}}))]}, "/vpcs/0/subnets/0/policy/Sets"),
    ({"vpcs": [shop(), {"name": "blue"}], "peerings": [["shop", "blue"]]}, "/vpcs/1"),
    ({"vpcs": [shop(), {"name": "bl ue", "cidr": "10.1.0.0/16"}], "peerings": [["shop", "blue"]]}, "/vpcs/1/name"),
    ({"vpcs": [shop(subnet("web", 2, policy=allow("vpc:blue"))), 7]}, "/vpcs/1"),
    ({"vpc": [{"name": "blue"}], "vpcs": [shop()], "peerings": [["shop", "blue"]]}, "/vpc"),
    ({"vpcs": 7, "peerings": [["shop", "blue"]]}, "/vpcs"),
]


@pytest.mark.parametrize(("document", "pointer"), NO_CASCADES)
def test_an_error_is_told_without_what_follows_from_it(document: dict[str, Any], pointer: str) -> None:
    assert [line.partition(": ")[0] for line in told_of(document)] == [pointer]


def test_an_unknown_name_in_an_array_is_told_by_its_place_beside_wrong_ones() -> None:
    policy = {"ingress": [{"action": "allow", "source": [7, "10.0.0.1/8", "subnet:ghost"]}]}
    told = [line.partition(": ")[0] for line in told_of({"vpcs": [shop(subnet("web", 1, policy=policy))]})]
    place = "/vpcs/0/subnets/0/policy/ingress/0/source"
    assert told == [f"{place}/0", f"{place}/1", f"{place}/2"]
