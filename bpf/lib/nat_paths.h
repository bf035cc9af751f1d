/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where a packet goes after translation at the node's devices; shared by the programs of nat.c and north_south.c. */
#pragma once
#include "deliver.h"
#include "hostfw.h"
#include "masquerade.h"
#include "snat.h"
#include "tailcall.h"

/* A verdict that `finish` does not know: nothing more to do here, the stack gets the packet. */
#define NAT_LEAVE 100

INLINE bool came_by_overlay(struct __sk_buff *skb)
{
	struct datapath_config *cfg = datapath_config();

	return cfg && cfg->overlay_ifindex && skb->ifindex == cfg->overlay_ifindex;
}

/* The stack gets it, if the host's policy agrees. Returns a verdict for `finish`. */
INLINE int nat_leave(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	if (likely(!host_endpoint()))
		return TC_ACT_OK;
	if (!came_by_overlay(skb))
		return host_from_netdev(skb, ctx);
	ctx->dst_identity = identity_of(&ctx->daddr);
	return to_host(skb, ctx);
}

/* Who sent a packet that arrives: what the overlay says, or what its address says. */
INLINE u32 arrived_from(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	u32 identity;

	if (came_by_overlay(skb))
		return ctx->src_identity;
	identity = identity_of(&ctx->saddr);
	/* Nobody out there is this node. */
	return identity == IDENTITY_HOST ? world_identity(&ctx->saddr) : identity;
}

/* To whom the packet is for now: a pod here, this node, or somebody else. */
INLINE int nat_deliver(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct endpoint_info *dst = endpoint_by_addr(&ctx->daddr);

	if (dst) {
		ctx->dst_endpoint = dst->id;
		ctx->delivery = DELIVER_PEER;
		tailcalls.call(skb, TAIL_INGRESS);
		return -DROP_MISSED_TAIL_CALL;
	}
	if (!(ctx->flags & CTX_F_NORTH_SOUTH) || identity_of(&ctx->daddr) == IDENTITY_HOST)
		return NAT_LEAVE;
	tailcalls.call(skb, TAIL_NAT_FORWARD);
	return -DROP_MISSED_TAIL_CALL;
}

/* Translate a packet that came in by its entry and send it on. Returns a verdict for `finish`, or NAT_LEAVE. */
INLINE int nat_go_on(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct nat_entry *entry)
{
	u32 sender = arrived_from(skb, ctx);
	struct addr source = ctx->saddr;
	int reason;

	if (entry->service_id) {
		ctx->flags |= CTX_F_NORTH_SOUTH;
		if (!(entry->flags & NAT_F_ANSWER)) {
			ctx->service_id = entry->service_id;
			ctx->service_address = ctx->daddr;
			ctx->service_port = ctx->dport;
			/* An error opens nothing: the backend's node takes it for what it is. */
			if ((entry->flags & NAT_F_DSR) && may_open(ctx) && !(ctx->flags & CTX_F_ICMP_ERROR))
				ctx->flags |= CTX_F_DSR;
		}
	}
	reason = nat_translate(skb, ctx, entry);
	if (reason)
		return -reason;
	/* With another address of ours it is our packet. */
	ctx->src_identity = addr_equal(&source, &ctx->saddr) ? sender : IDENTITY_HOST;
	return nat_deliver(skb, ctx);
}
