"""Kernel objects as values: their kinds, the topology that a world needs, plans, and the kernel's protocol.

Imports the packages above it in docs/architecture.md: `model`, `documents`, `compiler`, `analysis`.
"""
