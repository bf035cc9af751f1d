/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A pod that reaches itself through its own Service: it cannot receive packets from its own address, so the source
 * becomes the hairpin address on the way in and the Service's on the way back. No policy: a pod is never cut off
 * from itself. Its end is reported by the collector. */
#pragma once
#include "ct_room.h"
#include "deliver.h"
#include "service_path.h"
#include "trace.h"
#include "verdict.h"

INLINE struct addr *hairpin_address(const struct pkt_ctx *ctx)
{
	struct datapath_config *cfg = datapath_config();

	if (!cfg)
		return NULL;
	return ctx->family == 4 ? &cfg->hairpin_ipv4 : &cfg->hairpin_ipv6;
}

INLINE int hairpin_deliver(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	count_packet(DIR_EGRESS, 0, ctx->ip_len);
	ctx->dst_endpoint = ctx->src_endpoint;
	ctx->dst_identity = ctx->src_identity;
	ctx->delivery = DELIVER_PEER;
	return deliver(skb, ctx);
}

/* The key under which the pod's answers find their entry. */
INLINE void hairpin_key(struct pkt_ctx *ctx, const struct addr *hairpin, u16 server_port, u16 client_port)
{
	ctx->key.local = ctx->saddr;
	ctx->key.remote = *hairpin;
	ctx->key.local_port = server_port;
	ctx->key.remote_port = client_port;
	ctx->key.protocol = ctx->protocol;
	ctx->key.scope = CT_SCOPE_HAIRPIN;
}

INLINE int hairpin_entry(struct pkt_ctx *ctx, const struct endpoint_info *ep)
{
	struct decision d = {};
	struct ct_entry *entry = ct.lookup(&ctx->key);
	u32 zero = 0;

	if (entry && !ct_is_over(entry, ctx)) {
		ct_account(ctx, entry, true);
		ct_follow_room(ctx, entry, true);
		return 0;
	}
	entry = ct_fresh.lookup(&zero);
	if (!entry)
		return DROP_CT_MAP_INSERTION_FAILED;
	ctx->ct_state = CT_NEW;
	/* As seen from the server's side, which is how the key looks. */
	ct_fill(entry, ctx, ep, DIR_INGRESS, ep->identity, ep->id, &d);
	if (ct_insert(ctx, entry))
		return DROP_CT_MAP_INSERTION_FAILED;
	emit_flow(ctx, entry, EVENT_NEW, 0);
	return 0;
}

/* The backend that was chosen (nat->daddr) is the client itself. */
INLINE int hairpin_request(struct pkt_ctx *ctx, const struct endpoint_info *ep, struct nat *nat)
{
	struct addr *hairpin = hairpin_address(ctx);

	if (!hairpin || addr_is_zero(hairpin))
		return DROP_STALE_OR_UNROUTABLE_IP;
	nat->saddr = *hairpin;
	nat->sport = ctx->sport;
	nat->flags |= NAT_SOURCE;
	hairpin_key(ctx, hairpin, nat->dport, ctx->sport);
	return hairpin_entry(ctx, ep);
}

INLINE bool is_hairpin_reply(const struct pkt_ctx *ctx)
{
	struct addr *hairpin = hairpin_address(ctx);

	return hairpin && !addr_is_zero(hairpin) && addr_equal(&ctx->daddr, hairpin);
}

INLINE int hairpin_reply(struct pkt_ctx *ctx, struct nat *nat)
{
	struct ct_entry *entry;

	hairpin_key(ctx, &ctx->daddr, ctx->sport, ctx->dport);
	entry = ct.lookup(&ctx->key);
	if (!entry)
		return DROP_STALE_OR_UNROUTABLE_IP;
	ctx->service_id = entry->service_id;
	ctx->ct_state = CT_REPLY;
	nat->saddr = entry->nat_address;
	nat->sport = entry->nat_port;
	nat->daddr = ctx->saddr;
	nat->dport = ctx->dport;
	nat->flags = NAT_SOURCE | NAT_DESTINATION;
	ct_account(ctx, entry, false);
	ct_follow_room(ctx, entry, false);
	return 0;
}
