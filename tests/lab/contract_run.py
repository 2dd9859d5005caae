"""The program behind `test_contract.py`: it runs in a lab and tries one law of tests/contract.py on the real kernel."""

from __future__ import annotations

import sys

from pyroute2 import netns

from tests.contract import LAWS, Machine
from vpcctl.kernel.linux import LinuxKernel

if __name__ == "__main__":
    LAWS[sys.argv[1]](Machine(LinuxKernel(), lambda item: netns.create(item.namespace)))
