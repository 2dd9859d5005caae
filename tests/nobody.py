"""What an ordinary user needs to run the program, wherever the environment of the tests is.

That environment may lie where nobody but root may enter, so the packages are copied to where everybody may read them,
and run by the Python that the environment was made from.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import vpcctl


def _python() -> str:
    """The Python of the environment, else the system's of that version, where everybody may enter."""
    own = Path(os.path.realpath(sys.executable))
    system = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
    entered = (one for one in (own, system) if one.exists() and all(up.stat().st_mode & 0o001 for up in one.parents))
    return str(next(entered, own))


PYTHON = _python()
BECOME = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@contextlib.contextmanager
def packages() -> Iterator[Path]:
    """A directory with this package and all others that are installed."""
    ignored = shutil.ignore_patterns("__pycache__")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        for installed in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            shutil.copytree(installed, place, ignore=ignored, dirs_exist_ok=True)
        shutil.copytree(Path(vpcctl.__file__).parent, Path(place, "vpcctl"), ignore=ignored, dirs_exist_ok=True)
        subprocess.run(["chmod", "-R", "a+rX", place], check=True)
        yield Path(place)


def words(source: Path) -> list[str]:
    """What to put before the arguments of a Python that nobody runs with the packages in `source`."""
    return [*BECOME, "env", f"PYTHONPATH={source}", "PYTHONDONTWRITEBYTECODE=1", PYTHON]
