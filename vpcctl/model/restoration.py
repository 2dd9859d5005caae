"""A world of the past as the world to come: what people wanted comes back, what was allocated since stays.

The place of an uplink, the MAC address of an instance, the port at which a router takes in a published one, and the
addresses that were released: these are facts of the present.  What is there keeps them, so that connections go on; what
is made anew gets new ones, so that nobody meets what is remembered of the one before.
"""

from __future__ import annotations

import dataclasses

from vpcctl import names
from vpcctl.model.network import Instance, Publication, Subnet, Vpc, World, placed


def restored(present: World, past: World, serial: int) -> World:
    """`past`, on the way from `present`; `serial` makes new MAC addresses."""
    there = present.vpcs_by_name
    taken = {there[vpc.name].index for vpc in past.vpcs if vpc.name in there}
    vpcs = []
    for vpc in past.vpcs:
        if vpc.name in there:
            vpcs.append(_restored_vpc(there[vpc.name], vpc, serial))
            continue
        index = vpc.index if vpc.index not in taken else next(n for n in range(len(taken) + 1) if n not in taken)
        taken.add(index)
        subnets = tuple(_made_subnet(vpc.name, subnet, serial) for subnet in vpc.subnets)
        vpcs.append(dataclasses.replace(vpc, index=index, subnets=subnets))
    return dataclasses.replace(past, vpcs=tuple(vpcs))


def _restored_vpc(present: Vpc, past: Vpc, serial: int) -> Vpc:
    # Compared without reading what neither of them changed.
    if present == past:
        return present
    known = present.subnets_by_name
    subnets = tuple(
        _restored_subnet(present, known[subnet.name], subnet, serial)
        if subnet.name in known
        else _made_subnet(past.name, subnet, serial, present)
        for subnet in past.subnets
    )
    found = dataclasses.replace(
        past,
        index=present.index,
        mtu=present.mtu if past.mtu is None else past.mtu,
        subnets=subnets,
        publications=_publications(present, past),
    )
    return present if found == present else found


def _restored_subnet(vpc: Vpc, present: Subnet, past: Subnet, serial: int) -> Subnet:
    instances = tuple(_instance(vpc.name, one, serial, vpc) for one in past.instances)
    released = present.with_instances(instances).released if present.prefixes == past.prefixes else ()
    return dataclasses.replace(past, instances=instances, released=released)


def _made_subnet(vpc: str, past: Subnet, serial: int, present: Vpc | None = None) -> Subnet:
    instances = tuple(_instance(vpc, one, serial, present) for one in past.instances)
    return dataclasses.replace(past, instances=instances, released=())


def _instance(vpc: str, past: Instance, serial: int, present: Vpc | None) -> Instance:
    """An instance that is there with the same addresses stays as it is; another one is made anew."""
    known = None if present is None else present.instances_by_name.get(past.name)
    if known is not None and known.addresses == past.addresses:
        return known
    return dataclasses.replace(past, mac=names.stable_mac(vpc, past.name, str(serial)))


def _publications(present: Vpc, past: Vpc) -> tuple[Publication, ...]:
    """Those that are there keep their ports at the router; the others take free ones."""
    staying = {_meant(item): item for item in present.publications}
    found = [staying.get(_meant(item)) for item in past.publications]
    kept = [item for item in found if item is not None]
    made: list[Publication] = []
    for item, known in zip(past.publications, found, strict=True):
        new = placed(item, [*kept, *made]) if known is None else known
        made.append(new)
    return tuple(made)


def _meant(item: Publication) -> Publication:
    """What people wanted of it."""
    return dataclasses.replace(item, entry=None)
