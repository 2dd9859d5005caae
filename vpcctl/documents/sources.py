"""Where documents come from: files, standard input, or values that a program has parsed already.

A `Document` is parsed JSON together with what its words need: the name to call it by in messages, and the folder from
which it names other files.  Messages never quote the content of a file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpcctl.documents import files
from vpcctl.documents.reading import parse
from vpcctl.errors import DocumentError
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.documents.policies import PolicyFile
    from vpcctl.model.network import World

STANDARD_INPUT = "(standard input)"
# Reads the policy file that an environment names: the parsed JSON and the name to call it by.
Loader = Callable[[str], tuple[Any, str]]


@dataclass(frozen=True, slots=True)
class Document:
    """Parsed JSON; messages call it `name`, and files that it names are relative to `folder`."""

    content: Any
    name: str = "document"
    folder: Path = Path()

    def loader(self) -> Loader:
        """What reads the policy files that the document names."""
        folder = self.folder
        return lambda policy: _named(str(folder / policy))


# A path (``-`` is standard input), or what a program has parsed already.
Source = str | Path | Document


def read_source(source: Source) -> Document:
    """The document of a source; DocumentError if a file cannot be read or is not JSON."""
    if isinstance(source, Document):
        return source
    place = str(source)
    name = STANDARD_INPUT if place == "-" else place
    content = _parsed(lambda: files.read_given(place, files.LARGEST_DOCUMENT), name)
    return Document(content, name, Path(place).parent)


def read_policy_sources(sources: Iterable[Source]) -> list[PolicyFile]:
    """What can be read of the policies of each source, with the problems; `binding.sound_policies` reports them."""
    return [_policy_file(source) for source in sources]


def _policy_file(source: Source) -> PolicyFile:
    from vpcctl.documents.policies import PolicyFile, read_policy_file

    try:
        document = read_source(source)
    except DocumentError as error:
        return PolicyFile(problems=error.problems)
    return read_policy_file(document.content, document.name)


def read_environment_source(source: Source) -> World:
    """The world of an environment document, everything in it checked."""
    from vpcctl.documents.binding import check
    from vpcctl.documents.environment import read_environment

    document = read_source(source)
    world = read_environment(document.content, document.name, document.loader())
    check(world, (vpc.name for vpc in world.vpcs), document.name)
    return world


def read_once(load: Loader) -> Loader:
    """`load`, which reads each file once: vpcctl uses what it checked, even if the file is edited meanwhile."""
    return functools.cache(load)


def _named(place: str) -> tuple[Any, str]:
    """A file that another document names: only regular files, whatever our own descriptors are."""
    return _parsed(lambda: files.read(place, files.LARGEST_DOCUMENT), place), place


def _parsed(read: Callable[[], bytes], name: str) -> Any:
    """The JSON that `read` returns."""
    from vpcctl.documents.notations import other_encoding

    try:
        data = read()
        if encoding := other_encoding(data):
            raise DocumentError(f"{name}: is text in {encoding}; save it as UTF-8 without BOM")
        text = data.decode()
    except OSError as error:
        raise DocumentError(f"{name}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"{name}: is not text in UTF-8") from error
    except ValueError as error:
        raise DocumentError(f"{name!r} is not a file name ({error})") from error
    return parse(text, name)
