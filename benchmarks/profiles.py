"""Where the time of a command goes: functions by time, and modules by the time of their import.

    ./run bench profiles [NAME…] [--vpcs N] [--top N]

NAME is a command of `./run bench commands`, `repair`, or `attach`: one long-running controller makes instances.
Without NAME: create-subnet, status, repair and attach.  The command runs beside N VPCs of four subnets.
`./run bench rules --profile` does the same for policies of many rules.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import results
from benchmarks.commands import OURS, environment, settled
from benchmarks.restore import SUBNETS, reboot
from vpcctl import Controller
from vpcctl.engine.state import Store
from vpcctl.lab import STATE_DIR

TOP, VPCS, CALLS = 25, 4, 10
ATTACH = "attach"
COMMANDS = {name: words.split() for name, words in OURS.items()} | {"repair": ["repair"]}
NAMES = [*COMMANDS, ATTACH]
DEFAULT = ("create-subnet", "status", "repair", ATTACH)
# Starts the command line under the profiler; its first argument is the file of figures.
PROGRAM = """
import cProfile, sys
profiler = cProfile.Profile()
file, sys.argv[1:] = sys.argv[1], sys.argv[2:]
profiler.enable()
try:
    from vpcctl.cli import main
    main()
finally:
    profiler.disable()
    profiler.dump_stats(file)
"""
IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|( *)(\S+)")


def print_functions(profile: cProfile.Profile | str, top: int = TOP) -> None:
    """The functions in which most time was spent, without the functions that they call, and then with them."""
    found = pstats.Stats(profile, stream=sys.stdout).strip_dirs()
    for order in ("tottime", "cumulative"):
        found.sort_stats(order).print_stats(top)


def print_imports(text: str, top: int = TOP) -> None:
    """Modules by the milliseconds of their own code, from what `-X importtime` wrote."""
    modules = [(int(own), int(all_), name) for own, all_, _, name in IMPORTED.findall(text)]
    print(f"imports: {len(modules)} modules, {sum(own for own, _, _ in modules) / 1000:.0f} ms")
    print("   own ms   all ms  module")
    for own, all_, name in sorted(modules, reverse=True)[:top]:
        print(f"{own / 1000:9.1f}{all_ / 1000:9.1f}  {name}")


def profile(name: str, top: int) -> None:
    """Run a command twice: under the profiler, and with the times of its imports."""
    words = COMMANDS[name]
    with tempfile.NamedTemporaryFile(suffix=".profile") as file:
        if name == "repair":
            reboot(Store(STATE_DIR))
        subprocess.run([sys.executable, "-c", PROGRAM, file.name, *words], check=True, stdout=subprocess.DEVNULL)
        print(f"\n=== vpcctl {' '.join(words)}")
        print_functions(file.name, top)
    # A command that changes nothing imports less, so first delete what the profiled command made.
    if name.startswith("create-"):
        undo = {"create-subnet": ["--name", "new", "--cascade"], "create-instance": ["--name", "more"]}[name]
        subprocess.run(["vpcctl", "-q", name.replace("create", "delete"), "--vpc", "v0", *undo], check=True)
    command = [sys.executable, "-X", "importtime", "-m", "vpcctl", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    print_imports(done.stderr, top)


def profile_attach(top: int) -> None:
    """Make and delete an instance ten times by one controller, as `./run bench compare cni` does."""
    controller = Controller(STATE_DIR)
    controller.create_instance("v0", "s0", "first")
    profiler = cProfile.Profile()
    profiler.enable()
    for number in range(CALLS):
        controller.create_instance("v0", "s0", f"i{number}")
        controller.delete_instance("v0", f"i{number}")
    profiler.disable()
    print(f"\n=== create_instance and delete_instance, {CALLS} times")
    print_functions(profiler, top)


def main() -> None:
    parser = argparse.ArgumentParser(
        "./run bench profiles", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*NAMES, []], help=", ".join(NAMES))
    parser.add_argument("--vpcs", type=int, default=VPCS)
    parser.add_argument("--top", type=int, default=TOP)
    options = parser.parse_args()
    results.in_lab()
    Path("/run/environment.json").write_text(json.dumps(environment(options.vpcs, SUBNETS)))
    subprocess.run(["vpcctl", "-q", "apply", "/run/environment.json"], check=True)
    for name in options.names or DEFAULT:
        if name == ATTACH:
            profile_attach(options.top)
        else:
            profile(name, options.top)
    subprocess.run(["vpcctl", "-q", "destroy", "--all", "--yes"], check=False)
    settled()


if __name__ == "__main__":
    main()
