/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which packets of pods leave with the node's address: those to the outside, unless the other side opened the
 * connection, or the destination is one that knows the way to pods. */
#pragma once
#include "conntrack.h"
#include "endpoints.h"
#include "ipcache.h"
#include "netdev.h"
#include "snat.h"

/* Destinations that see pods' own addresses: the cluster's pod ranges, and what the configuration excludes. */
LPM_MAP(no_masquerade, struct ipcache_key, u32, 16384);

/* Is the address a pod's or a node's? The API server is a node where it has a tunnel. */
INLINE bool is_inside(const struct addr *address)
{
	struct remote_endpoint_info *peer = ipcache_lookup(address);

	if (!peer || peer->identity == IDENTITY_WORLD || peer->identity > IDENTITY_CLUSTER_MAX)
		return false;
	if (peer->identity == IDENTITY_HOST || peer->identity == IDENTITY_REMOTE_NODE ||
	    peer->identity >= IDENTITY_CLUSTER_MIN)
		return true;
	return by_overlay(peer);
}

/* Did somebody outside open the connection to the pod itself? */
INLINE bool is_answer_of_pod(struct pkt_ctx *ctx)
{
	struct ct_entry *entry;

	ct_key_set(ctx, true);
	entry = ct.lookup(&ctx->key);
	return entry && entry->direction == DIR_INGRESS;
}

INLINE bool wants_masquerade(struct pkt_ctx *ctx, const struct datapath_config *cfg)
{
	struct ipcache_key key = { .prefixlen = 128, .address = ctx->daddr };

	if (!(cfg->flags & CONFIG_F_MASQUERADE) || !endpoint_by_addr(&ctx->saddr))
		return false;
	return !is_inside(&ctx->daddr) && !no_masquerade.lookup(&key) && !is_answer_of_pod(ctx);
}
