"""A session of the command line whose kernel is a dictionary: pure tests run commands in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vpcctl.cli.session import Session
from vpcctl.engine.state import State, Store
from vpcctl.resources.fake import FakeKernel


class Rehearsal(Session):
    """A session on a fake machine; `make_store` makes the record in the state directory, by default without copies."""

    def __init__(self, directory: Path, verbosity: int = 0, make_store: Callable[[Path], Store] = Store):
        self.fake = FakeKernel()
        self._make_store = make_store
        super().__init__(str(directory), verbosity, lambda: self.fake)

    @property
    def store(self) -> Store:
        return self._make_store(self.state_dir)

    def load(self) -> State:
        """The present record."""
        return self.store.load()
