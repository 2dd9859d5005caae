"""A restored state file takes no generation back: what no policy allows does not pass, however many changes follow."""

from __future__ import annotations

import pytest

from tests.lab.tenants import DB, WEB, Tenants
from tests.lab.wire import arrived
from vpcctl.lab import STATE_DIR, Lab

ALLOW = {"action": "allow", "protocol": "udp"}
CHANGES = 8


@pytest.fixture(scope="module")
def tenants(module_lab: Lab) -> Tenants:
    return Tenants(module_lab)


@pytest.mark.parametrize("between", ["repair", "nothing", "flush and repair", "flush", "delete the table"])
def test_a_flow_that_no_policy_allows_never_passes_again(tenants: Tenants, between: str) -> None:
    web, db, lab = tenants[WEB], tenants[DB], tenants.lab
    tenants.apply("shop", "db", ingress=[{**ALLOW, "port": [1, 2222]}])
    lab.run(["cp", "-aT", str(STATE_DIR), "/run/older"])
    flows = []
    for port in range(3000, 3000 + CHANGES):
        # Each flow has the mark of another generation, and none of these is on record in the older file.
        tenants.apply("shop", "db", ingress=[{**ALLOW, "port": [2222, port]}])
        flows.append(web.udp(db.address, port, source_port=port))
        assert arrived(db.tap, {"allowed": flows[-1]}, web.udp(db.address, 2222)) == ["allowed"]
    lab.run(["cp", "-aT", "/run/older", str(STATE_DIR)])
    if "flush" in between:
        lab.run(["nft", "flush", "ruleset"], netns="shop-router")
    if "table" in between:
        lab.run(["nft", "delete", "table", "inet", "vpcctl"], netns="shop-router")
    if "repair" in between:
        tenants.wire.vpcctl("repair")
        assert tenants.wire.status("status") == 0
    for number in range(CHANGES + 2):
        tenants.apply("shop", "db", ingress=[{**ALLOW, "port": [2222, 4000 + number]}])
        tries = {str(3000 + one): flow for one, flow in enumerate(flows)}
        assert arrived(db.tap, tries, web.udp(db.address, 2222)) == [], f"at change {number}"
    assert tenants.wire.status("status") == 0
