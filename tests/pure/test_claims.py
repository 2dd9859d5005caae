"""What the file below a namespace's mount says, and how often a name is fought for."""

from __future__ import annotations

import errno

import pytest

from vpcctl.errors import KernelError
from vpcctl.kernel.claims import Claim, parse
from vpcctl.kernel.links import contended
from vpcctl.kernel.netlink import NetlinkError

TAG = "vpcctl/0a1b2c3d/shop/instance/web"


def test_a_claim_says_the_same_when_it_is_read_again() -> None:
    assert parse(Claim(TAG, 4026532999).text()) == Claim(TAG, 4026532999)
    assert parse(Claim(TAG).text()) == Claim(TAG)


@pytest.mark.parametrize("text", ["", "precious", f"{TAG}\n", f"{TAG}\n12\n", f"{TAG}\n{'1' * 20}", f"\n{'1' * 20}\n"])
def test_a_file_in_another_form_is_nobodys_claim_with_an_inode_number(text: str) -> None:
    assert parse(text) == Claim(text)


def taken(times: int, code: int = errno.EEXIST) -> tuple[list[str], object]:
    """What was done, and a `make` whose name is taken so many times."""
    done: list[str] = []

    def make() -> None:
        done.append("make")
        if done.count("make") <= times:
            raise NetlinkError(code)

    return done, make


@pytest.mark.parametrize("times", range(4))
def test_a_name_is_made_free_until_it_is_ours(times: int) -> None:
    done, make = taken(times)
    contended(make, lambda attempt: done.append(f"evict {attempt}"), 4)
    assert done == [word for number in range(times) for word in ("make", f"evict {number}")] + ["make"]


def test_a_name_that_is_taken_each_time_is_given_up_after_so_many_attempts() -> None:
    done, make = taken(99)
    with pytest.raises(KernelError, match="taken again after each of 4 attempts"):
        contended(make, lambda attempt: done.append("evict"), 4)
    assert (done.count("make"), done.count("evict")) == (4, 3)


def test_another_refusal_is_not_tried_again() -> None:
    done, make = taken(99, errno.ENOMEM)
    with pytest.raises(NetlinkError):
        contended(make, lambda attempt: done.append("evict"), 4)
    assert done == ["make"]
