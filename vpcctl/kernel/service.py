"""The systemd service that runs the agent (systemd.unit(5), systemd.service(5))."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

from vpcctl.errors import ConflictError, KernelError, PrivilegeError

NAME = "vpcctl-agent.service"
# The service of older versions, which restored once at boot, and how its unit described itself.
OLDER, OLDER_WORDS = "vpcctl-restore.service", "\nDescription=Restore the VPCs of vpcctl\n"
UNITS = Path("/etc/systemd/system")
RUNNING = Path("/run/systemd/system")


def unit(state_dir: Path) -> str:
    """The unit's text for this installation."""
    template = resources.files("vpcctl").joinpath(f"data/{NAME}").read_text(encoding="utf-8")
    return template.replace("@state_dir@", _escaped(str(state_dir.absolute()))).replace("@program@", _program())


def _program() -> str:
    """The vpcctl that is running, as a command that needs no PATH."""
    beside = Path(sys.executable).with_name("vpcctl")
    found = str(beside) if beside.exists() else shutil.which("vpcctl")
    return _escaped(os.path.abspath(found)) if found else f"{_escaped(sys.executable)} -m vpcctl"


def _escaped(text: str) -> str:
    """`text` as a word of a unit file; a path that cannot be one is refused."""
    if any(character in text for character in "\n\"'\\ "):
        raise ConflictError(f"{text!r} has characters that a unit file cannot take; move it")
    return text.replace("%", "%%")


def install(state_dir: Path, units: Path = UNITS) -> list[str]:
    """Write, enable and start the unit, and remove an older one.  Returns messages; KernelError if that fails.

    ConflictError in a lab that could not hide the machine's own directory.
    """
    if os.environ.get("VPCCTL_LAB") and not os.path.ismount(units):
        raise ConflictError(f"this lab has no {units} of its own, and the machine's is left alone")
    target = units / NAME
    text = unit(state_dir)
    try:
        units.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".new")
        try:
            temporary.write_text(text)
            temporary.chmod(0o644)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except PermissionError as error:
        raise PrivilegeError(f"cannot write {target}; use sudo") from error
    except OSError as error:
        raise KernelError(f"cannot write {target}", str(error)) from error
    older = _removed(units / OLDER) if _is_older(units / OLDER) else []
    steps = (["daemon-reload"], ["enable", NAME], ["restart", NAME])
    return [f"wrote {target}", *older, *(_systemctl(*words) for words in steps)]


def install_changes(state_dir: Path, units: Path = UNITS) -> list[tuple[str, Path]]:
    """The files that `install` would write (``+``), replace (``~``) or remove (``-``)."""
    target, text = units / NAME, unit(state_dir)
    found = [("-", units / OLDER)] if _is_older(units / OLDER) else []
    if not target.exists():
        return [("+", target), *found]
    return [("~", target), *found] if target.read_text(errors="replace") != text else found


def remove_changes(units: Path = UNITS) -> list[tuple[str, Path]]:
    """The files that `remove` would remove."""
    return [("-", target) for target in _installed(units)]


def _installed(units: Path) -> list[Path]:
    found = [target for target in (units / NAME, units / OLDER) if target.exists()]
    return [target for target in found if target.name == NAME or _is_older(target)]


def remove(units: Path = UNITS) -> list[str]:
    """Stop, disable and remove the unit, and that of an older version; succeeds if they are absent."""
    found = _installed(units)
    if not found:
        return [f"{units / NAME} not found"]
    return [*(words for target in found for words in _removed(target)), _systemctl("daemon-reload")]


def _removed(target: Path) -> list[str]:
    words = _systemctl("disable", "--now", target.name)
    try:
        target.unlink()
    except OSError as error:
        raise PrivilegeError(f"cannot remove {target} ({error.strerror}); use sudo") from error
    return [words, f"removed {target}"]


def _is_older(target: Path) -> bool:
    """Is it a unit that an older vpcctl wrote?  A unit of that name that somebody else wrote stays."""
    try:
        return OLDER_WORDS in target.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _systemctl(*words: str) -> str:
    """Run systemctl(1) where systemd is running; where it is not, say what to run when it is."""
    if not RUNNING.is_dir() or shutil.which("systemctl") is None:
        return f"systemd is not running here; run `systemctl {' '.join(words)}` where it is"
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KernelError(f"systemctl {' '.join(words)} failed", done.stderr.strip())
    return f"systemctl {' '.join(words)}"
