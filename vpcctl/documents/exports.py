"""Documents of other products: what a parsed document is if it is none of ours, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vpcctl.errors import DocumentError, Problem

# Each line is a problem of its own, as a problem is printed in one line.
EXAMPLE = (
    '  {"subnet": "web", "ingress": [',
    '    {"action": "allow", "protocol": "tcp", "port": 443, "source": "any"}]}',
)


def refuse_export(document: Any, file: str) -> None:
    """Raise DocumentError if `document` is what another product writes or reads."""
    name = next(_recognised(document), None)
    if name is not None:
        words = f"this is {name}, which vpcctl does not read; write a policy as in docs/policy.md, for example:"
        raise DocumentError(Problem(file, "", words, "a document of vpcctl is expected"), *EXAMPLE)


def _recognised(document: Any) -> Iterator[str]:
    """The names of what `document` may be, the most particular first."""
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict):
        return
    for name, fits in _EXPORTS.items():
        if fits(first):
            yield name
    if first.get("kind") == "List" and isinstance(first.get("items"), list):
        yield from _recognised(first["items"])


def _kubernetes(document: dict[str, Any]) -> bool:
    return document.get("kind") == "NetworkPolicy" and _group(document).startswith("networking.k8s.io")


def _calico(document: dict[str, Any]) -> bool:
    return _group(document).startswith(("projectcalico.org", "crd.projectcalico.org"))


def _cilium(document: dict[str, Any]) -> bool:
    return _group(document).startswith("cilium.io")


def _group(document: dict[str, Any]) -> str:
    found = document.get("apiVersion")
    return found if isinstance(found, str) else ""


def _aws(document: dict[str, Any]) -> bool:
    return bool(document.keys() & {"SecurityGroups", "SecurityGroupRules", "IpPermissions"})


def _incus(document: dict[str, Any]) -> bool:
    sides = [document.get(side) for side in ("ingress", "egress")]
    rules = [rule for side in sides if isinstance(side, list) for rule in side if isinstance(rule, dict)]
    switched = any(rule.get("state") in ("enabled", "disabled", "logged") for rule in rules)
    return any(isinstance(side, list) for side in sides) and ("used_by" in document or "config" in document or switched)


def _terraform(document: dict[str, Any]) -> bool:
    resources = document.get("resource")
    written = isinstance(resources, dict) and all("_" in str(name) for name in resources)
    return written or "terraform_version" in document or "planned_values" in document


def _nftables(document: dict[str, Any]) -> bool:
    return isinstance(document.get("nftables"), list)


_EXPORTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "the output of `aws ec2 describe-security-groups`": _aws,
    "a Kubernetes NetworkPolicy": _kubernetes,
    "a Calico policy": _calico,
    "a Cilium policy": _cilium,
    "Terraform JSON": _terraform,
    "the output of `nft --json list ruleset`": _nftables,
    "an Incus network ACL": _incus,
}
