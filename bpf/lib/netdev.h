/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node's own devices (services/agent/abi/nat.py). */
#pragma once
#include "types.h"

/* Key of the node's official addresses; all other keys are interface indexes. */
#define NETDEV_NODE 0

struct netdev_info {
	struct addr ipv4; /* the node's address there; zero: none of this family */
	struct addr ipv6;
};
_Static_assert(sizeof(struct netdev_info) == 32, "netdev_info");

HASH_MAP(netdevs, u32, struct netdev_info, 64);

INLINE struct netdev_info *netdev_by_ifindex(u32 ifindex)
{
	return netdevs.lookup(&ifindex);
}

/* The node's address on the device, or NULL. */
INLINE struct addr *netdev_address(struct netdev_info *dev, u8 family)
{
	struct addr *address = family == 4 ? &dev->ipv4 : &dev->ipv6;

	return addr_is_zero(address) ? NULL : address;
}
