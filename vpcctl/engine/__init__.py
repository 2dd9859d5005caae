"""Desired state to kernel state: the record, the reconciler, and what else a front end can ask.

Imports every package but `doctor`, `lab` and `cli`.
"""
