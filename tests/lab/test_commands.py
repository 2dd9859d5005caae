"""The command line itself: names of any length, many processes at once, bad input, and running programs inside."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time

import pytest

from tests.lab.machine import Answer, apply, attempt, run_all, seen, settle, state_file, try_all, write
from tests.nobody import PYTHON
from vpcctl.lab import STATE_DIR, Lab

BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-instance --vpc shop --subnet web --name web-2",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
    "create-vpc --name twin --cidr 10.0.0.0/16",
    "create-vpc --name billing --cidr 10.9.0.0/16",
    "create-subnet --vpc billing --name web --cidr 10.9.1.0/24 --type private",
    "create-peering --vpc1 shop --vpc2 billing",
    "publish-port --vpc shop --instance web --port 8080 --target-port 80",
)
WEB = "shop-web"


@pytest.fixture(scope="module")
def machine(module_lab: Lab) -> Lab:
    """The VPCs above; tests change nothing of them."""
    run_all(module_lab, BUILD)
    settle(module_lab, "shop-router")
    return module_lab


# --- Many, long, at once ----------------------------------------------------------------------------------------------


def test_names_of_32_characters_that_differ_in_the_last_one(lab: Lab) -> None:
    vpcs = [f"{'v' * 31}{end}" for end in "ab"]
    subnets = [f"{'s' * 31}{end}" for end in "ab"]
    others = [f"{'i' * 31}{end}" for end in "ab"]
    hub = "h" * 32
    commands = [f"create-vpc --name {hub} --cidr 10.250.0.0/16"]
    commands.append(f"create-subnet --vpc {hub} --name {hub} --cidr 10.250.1.0/24 --type private")
    for number, vpc in enumerate(vpcs):
        commands.append(f"create-vpc --name {vpc} --cidr 10.{number}.0.0/16")
        for place, subnet in enumerate(subnets):
            prefix = f"10.{number}.{place}.0/24"
            commands.append(f"create-subnet --vpc {vpc} --name {subnet} --cidr {prefix} --type public")
        commands += [f"create-instance --vpc {vpc} --subnet {subnets[0]} --name {other}" for other in others]
        commands.append(f"create-peering --vpc1 {hub} --vpc2 {vpc}")
    run_all(lab, commands)
    assert lab.vpcctl("status").stdout == "in sync\n"
    for number, vpc in enumerate(vpcs):
        names = {"10.250.1.2": hub, f"10.{number}.0.2": subnets[0], f"10.{number}.1.2": subnets[1]}
        names |= {f"10.{number}.0.{last}": other for last, other in zip((3, 4), others, strict=True)}
        for address in names:
            lab.run(["ping", "-n", "-c", "1", "-W", "5", address], netns=f"{vpc}-{subnets[0]}")
        links = [link["ifname"] for link in seen(lab, "link", netns=f"{vpc}-router")]
        assert len(links) == len(set(links)) == 2 + 2 + 4 + 1
        known = {name for link in seen(lab, "link", netns=f"{vpc}-router") for name in link.get("altnames", [])}
        assert known >= {
            *(f"vpcctl-subnet-{name}" for name in subnets),
            *(f"vpcctl-instance-{name}" for name in others),
        }
    assert len(seen(lab, "link")) == 2 + 3
    run_all(lab, ["destroy --all --yes"])
    assert lab.run(["ls", "/run/netns"]).stdout == ""


def test_sixteen_subnets_and_four_vpcs_at_once_all_come_to_be(lab: Lab) -> None:
    run_all(lab, ["create-vpc --name shop --cidr 10.0.0.0/16"])
    commands = [
        f"create-subnet --vpc shop --name s{number} --cidr 10.0.{number}.0/24 --type private" for number in range(16)
    ]
    commands += [f"create-vpc --name v{number} --cidr 10.{number + 1}.0.0/16" for number in range(4)]
    # On a busy machine the turn may not come within a command's patience (status 6); then it is asked again.
    while commands:
        running = [
            (command, lab.popen([sys.executable, "-m", "vpcctl", *command.split()], stdin=subprocess.DEVNULL))
            for command in commands
        ]
        said = {command: process.communicate(timeout=120)[1] for command, process in running}
        statuses = {command: process.returncode for command, process in running}
        assert set(statuses.values()) <= {0, 6}, said
        assert 0 in statuses.values(), said
        commands = [command for command, status in statuses.items() if status]
    assert lab.vpcctl("status").stdout == "in sync\n"
    found = json.loads(lab.vpcctl("list-subnets", "--vpc", "shop", "--json").stdout)
    assert sorted(one["name"] for one in found) == sorted(f"s{number}" for number in range(16))
    assert len(json.loads(lab.vpcctl("list-vpcs", "--json").stdout)) == 5
    lab.run(["ping", "-n", "-c", "1", "-W", "5", "10.0.15.2"], netns="shop-s0")


def test_one_name_at_once_is_made_by_one_of_them(lab: Lab) -> None:
    words = "create-vpc --name shop --cidr 10.0.0.0/16".split()
    running = [lab.popen([sys.executable, "-m", "vpcctl", *words], stdin=subprocess.DEVNULL) for _ in range(4)]
    for process in running:
        process.communicate(timeout=120)
    assert sorted(process.returncode for process in running) == [0, 4, 4, 4]
    assert lab.vpcctl("status").stdout == "in sync\n"


# --- compile ----------------------------------------------------------------------------------------------------------

EVERYTHING = {
    "sets": {"office": ["203.0.113.0/25", "203.0.113.200"]},
    "policies": [
        {
            "subnet": "web",
            "description": 'a "quoted" $name; with } and # and \\',
            "ingress": [
                {"action": "allow", "protocol": "tcp", "port": [80, "8000-8080"], "source": "set:office", "log": True},
                {"action": "allow", "protocol": "udp", "port": 53, "limit": "10/second"},
                {"action": "deny", "source": ["10.0.2.0/25", "instance:db"]},
                {"action": "reject", "protocol": "sctp", "description": '"; drop'},
                {"action": "allow", "protocol": "icmp", "icmp_type": ["echo-request", 13]},
                {"action": "allow", "protocol": 47, "source": "vpc:billing"},
            ],
            "egress": [{"action": "deny", "destination": "internet", "protocol": "tcp", "port": "25"}],
            "default": {"egress": "allow"},
        }
    ],
}
ENVIRONMENT = {
    "vpcs": [
        {
            "name": "shop",
            "cidr": "10.0.0.0/16",
            "subnets": [
                {"name": "web", "cidr": "10.0.1.0/24", "type": "public"},
                {"name": "db", "cidr": "10.0.2.0/24", "type": "private"},
            ],
        },
        {"name": "billing", "cidr": "10.9.0.0/16"},
    ],
    "peerings": [["shop", "billing"]],
}


def test_nft_accepts_what_compile_prints_and_nothing_is_loaded(machine: Lab) -> None:
    before = kernel(machine)
    file = write(machine, "everything.json", EVERYTHING)
    text = machine.vpcctl("compile", "--vpc", "shop", file).stdout
    for netns in ("shop-router", None):
        machine.run(["nft", "-c", "-f", "-"], netns=netns, input=text)
    assert kernel(machine) == before
    assert machine.run(["nft", "-c", "-f", "-"], input=text.replace("accept", "axept"), check=False).returncode == 1


def test_compile_for_an_environment_needs_no_privilege(machine: Lab) -> None:
    policy, environment = (write(machine, f"{n}.json", d) for n, d in enumerate((EVERYTHING, ENVIRONMENT)))
    machine.run(["chmod", "a+r", policy, environment])
    words = ["compile", "--environment", environment, "--vpc", "shop", policy]
    text = machine.run([*POWERLESS, sys.executable, "-m", "vpcctl", *words]).stdout
    machine.run(["nft", "-c", "-f", "-"], input=text)
    assert "8000-8080" in text


# --- Dry runs ---------------------------------------------------------------------------------------------------------

TRIED = [
    "create-vpc new --cidr 10.30.0.0/16",
    "delete-vpc shop --cascade",
    "set-limits shop --max-flows 100",
    "create-nat-protocol shop --protocol gre",
    "create-subnet shop/new --cidr 10.0.3.0/24 --type public",
    "delete-subnet shop/web --cascade",
    "create-nat-gateway shop/db",
    "create-instance shop/new --subnet web",
    "delete-instance shop/web-2",
    "publish-port shop/db --port 8081",
    "unpublish-port shop --port 8080",
    "delete-peering shop billing",
    "apply-policy shop/web everything.json",
    "apply environment.json --prune",
    "repair",
    "destroy --all",
]


def test_a_dry_run_touches_nothing_on_the_machine(machine: Lab) -> None:
    """Not the record, the kernel's objects, or what is kept beside them."""
    policy = {"ingress": [{"action": "allow", "protocol": "tcp", "port": 80}]}
    write(machine, "everything.json", policy)
    write(machine, "environment.json", ENVIRONMENT)
    folders = f"{STATE_DIR} /run/vpcctl"
    look = f"find {folders} -printf '%p %s %T@ %m\\n' | sort; find {folders} -type f | sort | xargs cat | sha256sum"

    def seen_now() -> tuple[list[str], str]:
        return kernel(machine), machine.run(["sh", "-c", look]).stdout

    before = seen_now()
    for line in TRIED:
        for more in ([], ["--json"]):
            words = [f"/run/{word}" if word.endswith(".json") else word for word in line.split()]
            result = machine.vpcctl(*words, "--dry-run", *more)
            if more:
                document = json.loads(result.stdout)
                assert (document["dry_run"], document["changed"]) == (True, line != "repair"), line
    assert seen_now() == before
    # The same as a change does leave traces: what is compared would show it.
    run_all(machine, ["create-instance shop/trace --subnet web", "delete-instance shop/trace"])
    assert seen_now() != before


# --- Bad input --------------------------------------------------------------------------------------------------------

# root by its number alone: every capability is gone for good.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]
RULE = {"action": "allow"}
SHOP = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
)
# What is given to apply-policy, and what is said of it.
BAD_POLICIES = {
    "not JSON": ('{"subnet": "web", ', "is not JSON"),
    "empty": ("", "is not JSON"),
    "a word": ('"web"', "object"),
    "duplicate key": ('{"subnet": "web", "ingress": [], "ingress": [{"action": "allow"}]}', "ingress"),
    "unknown field": ({"subnet": "web", "ingres": []}, "ingres"),
    "unknown rule field": ({"subnet": "web", "ingress": [{"action": "allow", "prot": "tcp"}]}, "/ingress/0/prot"),
    "no action": ({"subnet": "web", "ingress": [{"protocol": "tcp"}]}, "action"),
    "action": ({"subnet": "web", "ingress": [{"action": "permit"}]}, "permit"),
    "port": ({"subnet": "web", "ingress": [{**RULE, "protocol": "tcp", "port": 70000}]}, "70000"),
    "port of none": ({"subnet": "web", "ingress": [{**RULE, "protocol": "icmp", "port": 80}]}, "port"),
    "backwards": ({"subnet": "web", "ingress": [{**RULE, "protocol": "tcp", "port": "90-80"}]}, "90-80"),
    "host bits": ({"subnet": "web", "ingress": [{**RULE, "source": "10.0.1.7/24"}]}, "10.0.1.7/24"),
    "names nothing": ({"subnet": "db", "ingress": [{**RULE, "source": "subnet:webb"}]}, "webb"),
    "no such subnet": ({"subnet": "wbe", "ingress": []}, "wbe"),
    "no such VPC": ({"vpc": "sohp", "subnet": "web", "ingress": []}, "sohp"),
    "which VPC": ({"subnet": "web", "ingress": []}, "billing"),
    "which subnet": ({"vpc": "shop", "ingress": []}, "subnet"),
    "twice": ([{"vpc": "shop", "subnet": "web"}, {"vpc": "shop", "subnet": "10.0.1.0/24"}], "already"),
    "one of two": ([{"vpc": "shop", "subnet": "db", "ingress": []}, {"subnet": "web", "ingress": 5}], "#/1/ingress"),
    "injection": ({"subnet": "web", "ingress": [{**RULE, "source": "10.0.0.0/8 accept; flush ruleset"}]}, "flush"),
}
# Status, command, what is said.
BAD_COMMANDS = [
    (2, ["no-such-command"], "not found"),
    (2, ["create-vpc", "--name", "x"], "--cidr"),
    (2, ["create-vpc", "--name", "", "--cidr", "10.20.0.0/16"], "not valid"),
    (2, ["create-vpc", "--name", "a" * 33, "--cidr", "10.20.0.0/16"], "1 to 32"),
    (2, ["create-vpc", "--name", "router", "--cidr", "10.20.0.0/16"], "reserved"),
    *((2, ["create-vpc", "--name", name, "--cidr", "10.20.0.0/16"], "not valid")
      for name in ("a/b", "../x", "a b", "a;b", "$(id)", "-x", "_x", "ü", "a\n", "x.y", "~")),
    (2, ["create-vpc", "--name", "x", "--cidr", "10.20.0.1/16"], "bits set beyond"),
    (2, ["create-vpc", "--name", "x", "--cidr", "10.20.0.0/33"], "10.20.0.0/33"),
    (2, ["create-vpc", "--name", "x", "--cidr", "127.0.0.0/8"], "127.0.0.0/8"),
    (2, ["create-vpc", "--name", "x", "--cidr", "10.20.0.0/31"], "too small"),
    (2, ["create-vpc", "--name", "x", "--cidr", "2001:db8::/64"], "IPv4"),
    (4, ["create-vpc", "--name", "shop", "--cidr", "10.20.0.0/16"], "exists already"),
    (4, ["create-vpc", "--name", "x", "--cidr", "100.64.0.0/10"], "transit"),
    (2, ["create-subnet", "--vpc", "shop", "--name", "x", "--cidr", "10.9.9.0/24", "--type", "public"], "not inside"),
    (4, ["create-subnet", "--vpc", "shop", "--name", "x", "--cidr", "10.0.1.128/25", "--type", "public"], "overlaps"),
    (2, ["create-subnet", "--vpc", "shop", "--name", "x", "--cidr", "10.0.3.4/24", "--type", "public"], "bits set"),
    (2, ["create-subnet", "--vpc", "shop", "--name", "x", "--cidr", "10.0.3.0/31", "--type", "public"], "too small"),
    (2, ["create-subnet", "--vpc", "shop", "--name", "x", "--cidr", "10.0.3.0/24", "--type", "open"], "public"),
    (4, ["create-subnet", "--vpc", "shop", "--name", "web", "--cidr", "10.0.3.0/24", "--type", "public"], "already"),
    (4, ["create-subnet", "--vpc", "shop", "--name", "web-2", "--cidr", "10.0.3.0/24", "--type", "public"], "web-2"),
    (4, ["create-subnet", "--vpc", "none", "--name", "x", "--cidr", "10.0.3.0/24", "--type", "public"], "shop"),
    (2, ["create-instance", "--vpc", "shop", "--subnet", "web", "--name", "router"], "reserved"),
    (4, ["create-instance", "--vpc", "shop", "--subnet", "web", "--name", "db"], "already"),
    (4, ["create-instance", "--vpc", "shop", "--subnet", "web", "--name", "x", "--ip", "10.0.1.2"], "belongs to"),
    (2, ["create-instance", "--vpc", "shop", "--subnet", "web", "--name", "x", "--ip", "10.0.2.9"], "not in subnet"),
    (2, ["create-instance", "--vpc", "shop", "--subnet", "web", "--name", "x", "--ip", "10.0.1.255"], "broadcast"),
    (4, ["delete-instance", "--vpc", "shop", "--name", "none"], "web-2"),
    (4, ["delete-instance", "--vpc", "shop", "--name", "web"], "web still has tcp/8080 published"),
    (4, ["delete-subnet", "--vpc", "shop", "--name", "web"], "web-2"),
    (4, ["delete-subnet", "--vpc", "shop", "--name", "none"], "web"),
    (4, ["delete-vpc", "--name", "shop"], "peering with billing"),
    (4, ["delete-vpc", "--name", "none"], "shop"),
    (4, ["create-nat-gateway", "--vpc", "shop", "--subnet", "web"], "public"),
    (4, ["delete-nat-gateway", "--vpc", "shop", "--subnet", "db"], "no NAT gateway"),
    (2, ["create-peering", "--vpc1", "shop", "--vpc2", "shop"], "itself"),
    (4, ["create-peering", "--vpc1", "shop", "--vpc2", "billing"], "already"),
    (4, ["create-peering", "--vpc1", "shop", "--vpc2", "twin"], "overlap"),
    (4, ["create-peering", "--vpc1", "billing", "--vpc2", "twin"], "overlap"),
    (4, ["delete-peering", "--vpc1", "shop", "--vpc2", "twin"], "not peered"),
    (4, ["publish-port", "--vpc", "shop", "--instance", "db", "--port", "8080"],
     "published for instance web of VPC shop already"),
    (4, ["publish-port", "--vpc", "shop", "--instance", "none", "--port", "81"], "none"),
    (2, ["publish-port", "--vpc", "shop", "--instance", "db", "--port", "0"], "0"),
    (4, ["unpublish-port", "--vpc", "shop", "--port", "81"], "does not publish"),
    (4, ["clear-policy", "--vpc", "shop", "--subnet", "none"], "none"),
    (2, ["apply-policy"], "policy file"),
    (2, ["apply-policy", "/run/none.json"], "cannot be read"),
    (2, ["apply-policy", "/run"], "cannot be read"),
    (4, ["show-vpc", "--name", "none"], "none"),
    (4, ["status", "--vpc", "none"], "none"),
    (4, ["show-ruleset", "--vpc", "none"], "none"),
    (2, ["destroy"], "--all"),
    (2, ["exec", "--vpc", "shop", "true"], "--subnet"),
    (4, ["exec", "--vpc", "shop", "--subnet", "none", "--", "true"], "none"),
    (4, ["exec", "--vpc", "shop", "--instance", "web", "--user", "nobody-at-all", "--", "true"], "nobody-at-all"),
]  # fmt: skip


def kernel(lab: Lab) -> list[str]:
    """The state file, the host and the router of shop in one look, without the bridges' running timers."""
    look = "ip -d link; ip address; ip route; nft -s list ruleset"
    inside = f"{look}; ip neighbour show nud permanent; bridge fdb"
    script = f"cat {STATE_DIR}/state.json; {look}; ls /run/netns; ip netns exec shop-router sh -c '{inside}'"
    return re.sub(r"timer +[0-9.]+", "", lab.run(["sh", "-c", script]).stdout).splitlines()


BAD_CASES = [
    *(
        (2, ["apply-policy", "-"], policy if isinstance(policy, str) else json.dumps(policy), said)
        for policy, said in BAD_POLICIES.values()
    ),
    *((status, words, "", said) for status, words, said in BAD_COMMANDS),
]
BAD_NAMES = [*BAD_POLICIES, *(shlex.join(words)[:60] for _, words, _ in BAD_COMMANDS)]


@pytest.fixture(scope="module")
def answers(machine: Lab) -> list[Answer]:
    """What came of each bad case; the kernel is as before."""
    before = kernel(machine)
    found = try_all(machine, [(words, given) for _, words, given, _ in BAD_CASES])
    assert kernel(machine) == before
    return found


@pytest.mark.parametrize("number", range(len(BAD_CASES)), ids=BAD_NAMES)
def test_bad_input_is_refused_in_words_and_changes_nothing(machine: Lab, answers: list[Answer], number: int) -> None:
    status, _, _, words = BAD_CASES[number]
    answer = answers[number]
    assert (answer.status, answer.output) == (status, ""), answer.complaint
    assert words in answer.complaint
    assert answer.state == state_file(machine)


def test_bad_input_to_a_process_of_its_own(machine: Lab) -> None:
    before = kernel(machine)
    for status, words, said in (BAD_COMMANDS[0], BAD_COMMANDS[2], BAD_COMMANDS[-1]):
        result = attempt(machine, *words)
        assert (result.returncode, result.stdout) == (status, "")
        assert said in result.stderr
    assert kernel(machine) == before


def test_the_same_policy_again_changes_nothing(machine: Lab) -> None:
    file = write(machine, "same.json", {"vpc": "shop", "subnet": "db", "ingress": [RULE]})
    machine.vpcctl("apply-policy", file)
    before = kernel(machine)
    machine.vpcctl("apply-policy", file)
    assert kernel(machine) == before
    machine.vpcctl("clear-policy", "--vpc", "shop", "--subnet", "db")
    assert kernel(machine) != before


# --- What is not there ------------------------------------------------------------------------------------------------


def test_without_a_ruleset_hits_and_objects_say_what_loads_it(lab: Lab) -> None:
    run_all(lab, SHOP)
    looks = [["show-policy", "--vpc", "shop", "--hits"], ["show-ruleset", "--vpc", "shop", "--json"]]
    assert [attempt(lab, *words).returncode for words in looks] == [0, 0]
    lab.run(["nft", "flush", "ruleset"], netns="shop-router")
    for words in looks:
        result = attempt(lab, *words)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == "vpcctl: no ruleset is loaded in shop-router; `vpcctl repair` loads it\n"


def test_log_says_where_nothing_is_to_be_reported_and_listens_all_the_same(lab: Lab) -> None:
    run_all(lab, SHOP)
    silent = 'no rule of VPC shop has "log": true'
    for rules, told in (([], True), ([{**RULE, "log": True}], False)):
        lab.vpcctl("apply-policy", write(lab, "log.json", {"vpc": "shop", "subnet": "db", "ingress": rules}))
        process = lab.popen([sys.executable, "-m", "vpcctl", "log", "--vpc", "shop"])
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        assert any("listening to VPC shop" in line for line in lines)
        # What it has to say it says at once.
        if not told:
            time.sleep(1)
            assert process.poll() is None
            process.kill()
        assert (silent in next(lines, "")) == told
        process.kill()


# --- exec -------------------------------------------------------------------------------------------------------------


def inside(lab: Lab, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command in the instance web."""
    return lab.run([sys.executable, "-m", "vpcctl", "exec", "--vpc", "shop", "--subnet", "web", "--", *command],
                   check=False, **options)  # fmt: skip


def test_exec_is_in_the_instance_and_needs_no_separator(machine: Lab) -> None:
    words = ["exec", "--vpc", "shop", "--instance", "web-2", "ip", "-json", "-4", "address", "show", "dev", "eth0"]
    [link] = json.loads(machine.vpcctl(*words).stdout)
    assert link["addr_info"][0]["local"] == "10.0.1.3"
    assert inside(machine, "ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]


@pytest.mark.parametrize("status", [0, 1, 7, 77, 255])
def test_exec_ends_with_the_status_of_the_command(machine: Lab, status: int) -> None:
    assert inside(machine, "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("number", ["TERM", "INT", "KILL", "PIPE"])
def test_exec_is_killed_by_what_kills_the_command(machine: Lab, number: str) -> None:
    command = f"{sys.executable} -m vpcctl exec --vpc shop --subnet web -- sh -c 'kill -{number} $$; sleep 5'"
    status = machine.run(["bash", "-c", f"{command}; echo $?"]).stdout
    assert int(status) == 128 + int(machine.run(["bash", "-c", f"kill -l {number}"]).stdout)


def test_signals_to_exec_reach_the_command(machine: Lab) -> None:
    script = f"""
{sys.executable} -m vpcctl exec --vpc shop --subnet web -- \
    {sys.executable} -u -c 'import signal, sys; signal.signal(15, lambda *_: sys.exit(41)); print(1); signal.pause()' \
    >/run/up &
until [ -s /run/up ]; do sleep 0.05; done
kill -TERM $!
wait $!
echo $?
"""
    assert machine.run(["bash", "-c", script]).stdout == "41\n"


def test_exec_passes_its_streams_through(machine: Lab) -> None:
    result = inside(machine, "sh", "-c", "cat; echo problem >&2", input="words\n")
    assert (result.stdout, result.stderr) == ("words\n", "problem\n")


def test_no_shell_reads_what_exec_is_given(machine: Lab) -> None:
    words = ["*", "$HOME", "a b", "`id`", "; echo x", "--help", "-v", "'\"", ""]
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    assert json.loads(inside(machine, sys.executable, "-c", program, *words).stdout) == words
    result = inside(machine, "echo hello | cat")
    assert result.returncode == 127
    assert "no shell" in result.stderr


def test_exec_hands_on_no_descriptor(machine: Lab) -> None:
    listing = "import os; print(sorted(int(name) for name in os.listdir('/proc/self/fd')))"
    script = f'{sys.executable} -m vpcctl exec --vpc shop --subnet web -- {sys.executable} -c "{listing}"'
    opened = machine.run(["bash", "-c", f"exec 7</etc/passwd 9>/dev/null 200</etc/passwd; {script}"]).stdout
    assert json.loads(opened) == [0, 1, 2, 3]  # 3 is the directory that is being listed
    # Without us they are handed on.
    plain = machine.run(["bash", "-c", f'exec 7</etc/passwd; {sys.executable} -c "{listing}"']).stdout
    assert 7 in json.loads(plain)


def test_exec_as_a_user_has_no_power_left(machine: Lab) -> None:
    status = "import json; print(json.dumps(dict(line.split(':', 1) for line in open('/proc/self/status'))))"
    words = ["exec", "--vpc", "shop", "--subnet", "web", "--user", "nobody", "--", PYTHON, "-I", "-c", status]
    result = attempt(machine, *words)
    if result.returncode == 5 and "cannot become" in result.stderr:
        pytest.skip("this user namespace has no user but root")
    if result.returncode == 126 and "Permission denied" in result.stderr:
        pytest.skip(f"nobody may not run {PYTHON}")
    found = {name: value.split() for name, value in json.loads(result.stdout).items()}
    assert found["Uid"] == ["65534"] * 4
    assert found["Gid"] == ["65534"] * 4
    assert {int(found[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert found["NoNewPrivs"] == ["1"]
    assert "0" not in found["Groups"]


def test_exec_of_what_is_no_program_ends_as_env_does(machine: Lab) -> None:
    for command, status, said in (("no-such-program", 127, "not found"), ("/etc/passwd", 126, "cannot run")):
        result = machine.run(
            [sys.executable, "-m", "vpcctl", "exec", "--vpc", "shop", "--subnet", "web", "--", command], check=False
        )
        assert (result.returncode, said in result.stderr) == (status, True), result.stderr
        assert machine.run(["env", command], check=False).returncode == status


# --- What is the same, and what is open -------------------------------------------------------------------------------


def test_what_was_flushed_holds_again_when_the_same_is_applied(lab: Lab) -> None:
    run_all(lab, SHOP)
    closed = write(lab, "closed.json", {"vpc": "shop", "subnet": "db", "ingress": []})
    ping = ["ping", "-n", "-c", "1", "-W", "1", "10.0.2.2"]
    assert lab.run(ping, netns="shop-web", check=False).returncode == 0
    lab.vpcctl("apply-policy", closed)
    document = write(lab, "environment.json", lab.vpcctl("export").stdout)
    for words in (["apply-policy", closed], ["apply", document]):
        lab.run(["nft", "flush", "ruleset"], netns="shop-router")
        said = lab.vpcctl(*words).stderr
        assert "repaired: ruleset of shop-router" in said
        assert lab.vpcctl("status").stdout == "in sync\n"
        assert "repaired" not in lab.vpcctl(*words).stderr
        assert lab.run(ping, netns="shop-web", check=False).returncode == 1


def test_a_port_that_is_published_to_everybody_is_told(lab: Lab) -> None:
    run_all(lab, SHOP)
    words = ["publish-port", "--vpc", "shop", "--instance", "web", "--port"]
    assert "warning: subnet web has no ingress policy" in lab.vpcctl(*words, "8080").stderr
    apply(lab, {"vpc": "shop", "subnet": "web", "ingress": [{"action": "allow", "protocol": "tcp", "port": 8081}]})
    assert "warning" not in lab.vpcctl(*words, "8081").stderr
    assert "warning: the ingress policy of subnet web denies everything" in lab.vpcctl(*words, "8082").stderr


def test_clearing_a_policy_tells_what_it_opens(lab: Lab) -> None:
    run_all(lab, SHOP)
    apply(lab, {"vpc": "shop", "subnet": "db", "ingress": []})
    words = ["clear-policy", "--vpc", "shop", "--subnet", "db"]
    asked = lab.vpcctl(*words, "--dry-run")
    assert "newly allowed:\n  web → db" in asked.stdout
    assert asked.stderr == "nothing was changed\n"
    assert lab.run(["ping", "-n", "-c", "1", "-W", "1", "10.0.2.2"], netns="shop-web", check=False).returncode == 1
    assert lab.vpcctl(*words).stdout == asked.stdout
    assert lab.run(["ping", "-n", "-c", "1", "-W", "5", "10.0.2.2"], netns="shop-web").returncode == 0
