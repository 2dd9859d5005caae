"""The packages of vpcctl, and what each may know (docs/adr/0016-packages.md)."""

from __future__ import annotations

# In the order in which they may know each other: each imports only those before it, and what stands BESIDE them.
PACKAGES = (
    "model",
    "documents",
    "compiler",
    "analysis",
    "resources",
    "kernel",
    "engine",
    "doctor",
    "agent",
    "lab",
    "cli",
)
BESIDE = {"vpcctl", "vpcctl.digest", "vpcctl.errors", "vpcctl.names", "vpcctl.values"}
# Packages that may know Linux: one acts on it, one examines it.
EDGES = {"kernel", "doctor"}
# Packages that compute: values in, values out.
PURE = {"model", "documents", "compiler", "analysis", "resources"}
# Packages that may start processes.
PROCESSES = {"lab"}
