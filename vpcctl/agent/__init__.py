"""A process that follows what changes on the host and repairs what differs, through the engine.

It may import everything below `cli` and `lab`.  Nothing depends on it: every command works without it.
"""
