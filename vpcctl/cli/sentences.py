"""What each command does, in its first sentence: `--help` lists the commands without importing them."""

from __future__ import annotations

SENTENCES = {
    "create-vpc": "Create a VPC with its router, uplink and default-deny ruleset.",
    "delete-vpc": "Delete a VPC.",
    "list-vpcs": "List the VPCs.",
    "show-vpc": "Show a VPC and everything in it.",
    "set-limits": "Change a VPC's limits for shared resources; live flows continue.",
    "create-nat-protocol": (
        "Enable source NAT of a protocol without ports for a VPC; only one VPC at a time can use it."
    ),
    "delete-nat-protocol": "Disable source NAT of a protocol without ports for a VPC; its live flows end.",
    "create-subnet": "Create a subnet and an instance of the same name in it.",
    "delete-subnet": "Delete a subnet and the instance of the same name.",
    "list-subnets": "List the subnets of a VPC, or of all VPCs.",
    "show-subnet": "Show a subnet and its instances.",
    "create-nat-gateway": (
        "Let a private subnet reach the internet, as far as its egress policy allows; no new flows get in."
    ),
    "delete-nat-gateway": "Cut a private subnet off from the internet; live connections end, too.",
    "create-instance": "Create an instance: a namespace with one interface in the subnet.",
    "delete-instance": "Delete an instance.",
    "list-instances": "List the instances of a VPC, or of all VPCs.",
    "show-instance": "Show an instance: its address, its namespace, and the ports published for it.",
    "publish-port": "Forward a host port to an instance; the ingress policy of its subnet still applies.",
    "unpublish-port": "Unpublish a port; live connections end, too.",
    "list-published-ports": "List the published ports of a VPC, or of all VPCs.",
    "exec": "Run a command inside an instance, and exit with its status.",
    "create-peering": "Connect two VPCs; their policies still apply, and peerings are not transitive.",
    "delete-peering": "Disconnect two VPCs; live connections end, too.",
    "list-peerings": "List the peerings.",
    "apply-policy": "Compile policies and load them, in one atomic transaction for each VPC.",
    "clear-policy": "Remove a subnet's policy; it is then open to its VPC and peers, and all its egress is allowed.",
    "show-policy": "Show the policies in force.",
    "compile": "Print the ruleset of a VPC in the format of `nft -f`, without loading it; needs no root.",
    "show-ruleset": "Show a VPC's ruleset from the kernel.",
    "explain": "Show whether a flow is allowed, which rule decides, and its path. Exit status 0: allowed, 1: denied.",
    "matrix": "Show the allowed traffic between all subnets, peers and the internet.",
    "verify": "Check assertions about traffic, for example in CI; exit status 1 if one fails.",
    "set-invariants": "State assertions about traffic that every later change must keep.",
    "show-invariants": "Show the invariants, and whether each holds; exit status 1 if one does not.",
    "clear-invariants": "Remove the invariants of the machine, or those of a VPC.",
    "graph": "Draw the network: VPCs, subnets, instances, peerings, published ports and ways out.",
    "log": 'Print the reports of rules with `"log": true`: the first packet of each flow, its verdict and its rule.',
    "flows": "Show live connections, and the rule that admits each.",
    "plan": "Show what `apply` would change, and which traffic this would allow and deny.",
    "apply": "Bring the VPCs of an environment document to exactly the described state.",
    "export": "Print the present environment as a document for `apply`.",
    "history": "List the changes that were made: when, by whom, by which command, and what they did.",
    "show-change": "Show what a change did: objects and traffic, before and after.",
    "undo": (
        "Go back to what was before the last change; live connections that are allowed again or still lose nothing."
    ),
    "confirm": "Keep the change that waits to be confirmed.",
    "status": "Compare the kernel with the desired state, object by object; exit status 3 if they differ.",
    "repair": "Bring the kernel to the desired state: after a crash, a reboot, or `nft flush ruleset`.",
    "agent": (
        "Follow what changes on this host, and repair what differs from the desired state, until a signal ends it."
    ),
    "install-service": "Install and start the systemd service that runs the agent, from boot on.",
    "uninstall-service": "Stop and remove the systemd service; VPCs stay as they are.",
    "grant-read": "Let the members of a group read the state directory, for commands that only read.",
    "destroy": "Remove everything that vpcctl made, and nothing else; the host is as before.",
    "lab": "Open a shell, or run a command, in a throw-away machine with a simulated internet; needs no root.",
    "show-schema": "Print the JSON Schema of a kind of document, for editors and other programs.",
    "completion": "Print the script that completes the words of `vpcctl` in a shell.",
    "doctor": (
        "Report missing requirements and conflicting settings, and how to fix them; exit status 1 if one is fatal."
    ),
}
