"""The throw-away machine: a sandbox with a pretend internet and LAN, and the demonstration in it."""

from vpcctl.lab.lab import HOST, INTERNET, NEIGHBOUR, RUN_LAB, STATE_DIR, Lab, run

__all__ = ["HOST", "INTERNET", "NEIGHBOUR", "RUN_LAB", "STATE_DIR", "Lab", "run"]
