/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Egress gateways (services/agent/abi/egress.py): packets of certain pods to certain destinations outside leave the
 * cluster by one node and with one address of that node.
 *
 * The pod's node has an entry for its pods, the gateway for every pod that it serves: the same packet finds its entry
 * on both. Who has no entry goes the normal way. Nothing that has one ever leaves with another address: there is no
 * gateway, or the gateway has no such address: dropped. */
#pragma once
#include "config.h"
#include "ipcache.h"
#include "native.h"
#include "overlay.h"

struct egress_key {
	u32 prefixlen; /* over 256 bits: all of the source, and the destination's */
	struct addr source;
	struct addr destination;
};
_Static_assert(sizeof(struct egress_key) == 36, "egress_key");

enum egress_flags {
	EGRESS_F_EXCLUDED = 1, /* the normal way after all */
	EGRESS_F_HERE = 2,     /* this node is the gateway */
};

struct egress_entry {
	struct addr gateway; /* the gateway's end of the overlay, or its address on our link; zero: there is no gateway */
	struct addr address; /* what the packet's source becomes on the gateway; zero: the gateway has no such address */
	u32 ifindex;         /* native routing: the device towards the gateway */
	u16 flags;           /* EGRESS_F_* */
	u16 pad;
};
_Static_assert(sizeof(struct egress_entry) == 40, "egress_entry");

LPM_MAP(egress_gateway, struct egress_key, struct egress_entry, 16384);

INLINE bool has_egress_gateways(const struct datapath_config *cfg)
{
	return cfg && (cfg->flags & CONFIG_F_EGRESS_GATEWAY);
}

/* What is to become of a packet to the outside; NULL: it goes the normal way. */
INLINE struct egress_entry *egress_lookup(const struct addr *source, const struct addr *destination)
{
	struct egress_key key = { .prefixlen = 256, .source = *source, .destination = *destination };
	struct egress_entry *entry = egress_gateway.lookup(&key);

	return entry && !(entry->flags & EGRESS_F_EXCLUDED) ? entry : NULL;
}

/* Native routing: to the gateway's link address. Returns a verdict for `finish`. */
INLINE int egress_by_link(struct __sk_buff *skb, const struct pkt_ctx *ctx, const struct egress_entry *entry)
{
	struct bpf_redir_neigh to = {};
	int reason = hop(skb, ctx);

	if (reason)
		return -reason;
	if (addr_is_v4(&entry->gateway)) {
		to.nh_family = FAMILY_IPV4;
		to.ipv4_nh = entry->gateway.w[3];
	} else {
		to.nh_family = FAMILY_IPV6;
		__builtin_memcpy(to.ipv6_nh, &entry->gateway, sizeof(to.ipv6_nh));
	}
	skb->mark = MARK_TO_GATEWAY;
	return redirect_to_neighbor(entry->ifindex, &to, sizeof(to), 0);
}

/* A verdict that `finish` does not know: the packet is not concerned. */
#define EGRESS_NORMAL 101

/* A pod's packet to the outside, which its policy allows: to the gateway, if it has one. */
INLINE int egress_from_endpoint(struct __sk_buff *skb, struct pkt_ctx *ctx, struct datapath_config *cfg)
{
	struct egress_entry *entry = egress_lookup(&ctx->saddr, &ctx->daddr);
	int reason;

	if (!entry)
		return EGRESS_NORMAL;
	if (entry->flags & EGRESS_F_HERE)
		return addr_is_zero(&entry->address) ? -DROP_NO_EGRESS_IP : TC_ACT_OK;
	if (addr_is_zero(&entry->gateway))
		return -DROP_NO_EGRESS_GATEWAY;
	if (routes_natively(cfg))
		return egress_by_link(skb, ctx, entry);
	if (!cfg->overlay_ifindex)
		return -DROP_NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT;
	/* Never by the stack, whose routes know nothing of gateways: what is too large is cut on the way there, or the pod
	 * is told. */
	reason = may_leave_by_overlay(skb, ctx, cfg, &entry->gateway);
	if (reason)
		return -reason;
	reason = set_tunnel(skb, &entry->gateway, ctx->src_identity);
	if (reason)
		return -reason;
	skb->mark = MARK_ENCAPSULATED;
	return bpf_redirect(cfg->overlay_ifindex, 0);
}

/* Another node's pod sends a packet to the outside by way of this node: 0, or a drop reason when this node is not its
 * gateway (any more, or not yet). */
INLINE int egress_check_gateway(const struct pkt_ctx *ctx)
{
	struct egress_entry *entry = egress_lookup(&ctx->saddr, &ctx->daddr);

	if (!entry || !(entry->flags & EGRESS_F_HERE))
		return DROP_NO_EGRESS_GATEWAY;
	return addr_is_zero(&entry->address) ? DROP_NO_EGRESS_IP : 0;
}
