"""Answers about traffic, from policies alone: who reaches whom, what a change means, which rules do nothing.

Computed on exact sets of packets, beside the compiler, so that each can be judged by the other: neither imports the
other.  Imports `model` and `documents`.
"""
