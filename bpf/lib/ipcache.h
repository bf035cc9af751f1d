/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Address table (services/agent/abi/ipcache.py): prefix -> identity and, for remote pods, the node that has them. */
#pragma once
#include "config.h"

struct ipcache_key {
	u32 prefixlen; /* over 128 bits */
	struct addr address;
};
_Static_assert(sizeof(struct ipcache_key) == 20, "ipcache_key");

/* 1, because by_overlay calculates with it. */
enum remote_flags { REMOTE_F_ROUTED = 1 /* by routes: tunnel_endpoint is its node, but no way to send */ };

struct remote_endpoint_info {
	u32 identity;
	struct addr tunnel_endpoint; /* the node that has it; zero: this one, or not known */
	u16 flags; /* REMOTE_F_* */
	u8 key;
	u8 pad;
};
_Static_assert(sizeof(struct remote_endpoint_info) == 24, "remote_endpoint_info");

LPM_MAP(ipcache, struct ipcache_key, struct remote_endpoint_info, 262144);

INLINE struct remote_endpoint_info *ipcache_lookup(const struct addr *address)
{
	struct ipcache_key key = { .prefixlen = 128, .address = *address };

	return ipcache.lookup(&key);
}

/* Does the overlay lead there? One branch: each that lives on multiplies what the verifier has to walk. */
INLINE bool by_overlay(const struct remote_endpoint_info *info)
{
	const struct addr *node = &info->tunnel_endpoint;

	return ((node->w[0] | node->w[1] | node->w[2] | node->w[3]) & ((u32)(info->flags & REMOTE_F_ROUTED) - 1)) != 0;
}

/* Pods and nothing else have these. */
INLINE bool is_cluster_pod(u32 identity)
{
	return identity >= IDENTITY_CLUSTER_MIN && identity <= IDENTITY_CLUSTER_MAX;
}

/* Neither a pod nor a node, nor anything else of the cluster: the world, and prefixes and names of it. */
INLINE bool is_outside(u32 identity)
{
	return identity == IDENTITY_WORLD || identity == IDENTITY_WORLD_IPV4 || identity == IDENTITY_WORLD_IPV6 ||
	       identity > IDENTITY_CLUSTER_MAX;
}

/* What this node calls somebody whom another node only knows to be outside. */
INLINE u32 outside_identity(const struct addr *address)
{
	struct remote_endpoint_info *info = ipcache_lookup(address);

	return info && info->identity > IDENTITY_CLUSTER_MAX ? info->identity : IDENTITY_WORLD;
}

/* Identity of addresses that no prefix covers. */
INLINE u32 world_identity(const struct addr *address)
{
	struct datapath_config *cfg = datapath_config();
	u32 identity = 0;

	if (cfg)
		identity = addr_is_v4(address) ? cfg->world_ipv4 : cfg->world_ipv6;
	return identity ? identity : IDENTITY_WORLD;
}
