"""Every name that vpcctl gives to a kernel object, its limits, and the tags that say an object is ours.

The kernel allows 15 bytes for an interface (IFNAMSIZ 16, include/uapi/linux/if.h), 127 for an alternative name and
255 for a file under /run/netns.  A user's name has up to 32 characters, so interface names are derived: the name
itself where it fits, else its beginning, a ``~`` and a hash.  No user's name can contain ``~``, so a derived name is
never equal to a readable one.
"""

from __future__ import annotations

import re

from vpcctl.digest import sha256
from vpcctl.errors import DocumentError

INTERFACE_LIMIT = 15
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
RESERVED = frozenset({"router"})

# The default directory of the record.
DEFAULT_STATE_DIR = "/var/lib/vpcctl"
TABLE = "vpcctl"
TAGGED = "vpcctl/"  # how every tag begins
UPLINK = "uplink"
PEER_PREFIX = "pr-"  # how the name of each link to a peer begins
INSTANCE_LINK = "eth0"
CHECKSUMS = "checksums"  # the link that completes checksums, in the router of a hardened VPC
HASH_LENGTH = 6


def check_name(name: str, what: str) -> str:
    """Return `name` if it can name a VPC, subnet or instance; raise DocumentError else."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        hint = ""
        if (what, name) == ("subnet", "*"):
            hint = "; for a policy of the whole VPC use `vpcctl apply-policy --subnet '*'`"
        raise DocumentError(
            f"{what} name {name!r} is not valid: 1 to 32 of A-Z a-z 0-9 - _ are expected,"
            f" beginning with a letter or digit{hint}"
        )
    if name in RESERVED:
        raise DocumentError(f"{what} name {name!r} is reserved for the VPC's router; choose another")
    return name


def interface(prefix: str, name: str) -> str:
    """An interface name of at most 15 characters, the same for the same words, different for different ones."""
    full = prefix + name
    if len(full) <= INTERFACE_LIMIT:
        return full
    import base64

    digest = base64.b32encode(sha256(full.encode())).decode().lower()[:HASH_LENGTH]
    return full[: INTERFACE_LIMIT - HASH_LENGTH - 1] + "~" + digest


def bridge(subnet: str) -> str:
    """The subnet's bridge, in the router namespace."""
    return interface("br-", subnet)


def port(instance: str) -> str:
    """The bridge's end of an instance's link, in the router namespace."""
    return interface("in-", instance)


def peer_link(peer: str) -> str:
    """The link to the VPC `peer`, in the router namespace."""
    return interface(PEER_PREFIX, peer)


def host_uplink(vpc: str) -> str:
    """The host's end of the VPC's uplink."""
    return interface("vpc-", vpc)


def router_namespace(vpc: str) -> str:
    """The VPC's router namespace."""
    return f"{vpc}-router"


def instance_namespace(vpc: str, instance: str) -> str:
    """An instance's namespace; for a subnet's own instance the ``<vpc>-<subnet>`` of the first vpcctl."""
    return f"{vpc}-{instance}"


def tag(state_id: str, vpc: str, role: str) -> str:
    """The mark of ownership: an ifalias, or the beginning of a table's comment.

    `state_id` distinguishes two state directories on one machine; `vpc` is empty for objects of the host.
    """
    return f"{TAGGED}{state_id}/{vpc}/{role}"


def stable_mac(*words: str) -> str:
    """A locally administered unicast MAC address (IEEE 802-2014, 8.4) that depends on `words` alone."""
    digest = sha256("\0".join(words).encode())
    return ":".join(f"{byte:02x}" for byte in bytes([0x02]) + digest[:5])
