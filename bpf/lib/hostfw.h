/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node as an endpoint: host policies (services/agent/calc/host.py). It has an entry in `endpoints` only while some
 * policy selects the node; without one nothing below happens but that look-up.
 *
 * Its packets are seen wherever they enter or leave the node's stack: at the node's devices, at pods' veths, at the
 * overlay. Both directions are followed as soon as one is policed, or replies could not be told from openings.
 *
 * Exempt, because they are not the host's own words: what is forwarded; link-scope traffic (ARP, neighbour discovery);
 * the overlay between nodes, whose inner packets are judged; errors that a packet is too big for the way. */
#pragma once
#include "ipcache.h"
#include "overlay.h"
#include "sock_name.h"
#include "tailcall.h"
#include "verdict.h"

/* The last slot of `endpoints`: no pod gets it (services/agent/abi/endpoints.py). */
#define HOST_ENDPOINT (MAX_ENDPOINTS - 1)

INLINE struct endpoint_info *host_endpoint(void)
{
	return endpoint_by_id(HOST_ENDPOINT);
}

/* A router's duty, whoever sent the packet that was too big. */
INLINE bool is_too_big(const struct pkt_ctx *ctx)
{
	if (likely(!(ctx->flags & CTX_F_ICMP_ERROR)))
		return false;
	return ctx->family == 4 ? ctx->icmp_type == 3 && ctx->icmp_code == 4 : ctx->icmp_type == 2;
}

/* The node's turn with a packet, whose identities are known: 0 or a drop reason. */
INLINE int host_turn(struct pkt_ctx *ctx, const struct endpoint_info *host, u8 direction)
{
	bool sends = direction == DIR_EGRESS;
	int reason;

	ctx->flags &= ~(CTX_F_HTTP | CTX_F_REVNAT);
	ctx->l7_ruleset = 0;
	ct_key_set(ctx, sends);
	reason = police(ctx, ct.lookup(&ctx->key), host, direction, sends ? ctx->dst_identity : ctx->src_identity, 0);
	if (!reason && unlikely(ctx->l7_ruleset) && (ctx->ct_state == CT_NEW || ctx->ct_state == CT_ESTABLISHED))
		reason = DROP_HTTP_NO_STATE; /* rules beyond L4 that nobody enforces for nodes: fail closed */
	if (reason && sends && is_too_big(ctx))
		reason = 0;
	if (!reason)
		count_packet(direction, 0, ctx->ip_len);
	else if (sends)
		ctx->src_endpoint = HOST_ENDPOINT;
	else
		ctx->dst_endpoint = HOST_ENDPOINT;
	return reason;
}

/* The last step of a packet that the node's stack gets: ctx->dst_identity says whether it is for the node itself.
 * Returns a verdict for `finish`. */
INLINE int to_host(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	if (likely(ctx->dst_identity != IDENTITY_HOST || !host_endpoint()))
		return TC_ACT_OK;
	ctx->direction = DIR_INGRESS;
	ctx->dst_endpoint = 0;
	tailcalls.call(skb, TAIL_HOST_POLICY);
	return -DROP_MISSED_TAIL_CALL;
}

/* Whether a packet parsed well enough to be judged, or is none that a host policy is about: 0, 1 (passes) or a negative
 * drop reason. `own`: the address that makes it the node's. */
INLINE int host_concerned(const struct pkt_ctx *ctx, int reason, const struct addr *own)
{
	struct remote_endpoint_info *info;

	if (reason == PARSE_LINK_SCOPE || reason == DROP_UNSUPPORTED_L3_PROTOCOL)
		return 1;
	if (reason == DROP_INVALID_PACKET_DROPPED)
		return -reason; /* its addresses could not be read */
	info = ipcache_lookup(own);
	if (!info || info->identity != IDENTITY_HOST)
		return 1;
	return reason ? -reason : 0;
}

/* The overlay between nodes. From anywhere else it is traffic like any other: who may speak it can claim identities. */
INLINE bool is_overlay_between_nodes(const struct pkt_ctx *ctx, u32 peer)
{
	return speaks_vxlan(ctx) && (peer == IDENTITY_REMOTE_NODE || peer == IDENTITY_KUBE_APISERVER);
}

INLINE u32 identity_of(const struct addr *address)
{
	struct remote_endpoint_info *info = ipcache_lookup(address);

	return info ? info->identity : world_identity(address);
}

/* A packet from one of the node's devices that nobody else took. Returns a verdict for `finish`. */
INLINE int host_from_netdev(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	int verdict = host_concerned(ctx, parse_packet(skb, ctx), &ctx->daddr);

	if (verdict)
		return verdict < 0 ? verdict : TC_ACT_OK;
	ctx->dst_identity = IDENTITY_HOST;
	ctx->src_identity = identity_of(&ctx->saddr);
	if (ctx->src_identity == IDENTITY_HOST)
		ctx->src_identity = world_identity(&ctx->saddr); /* nobody out there is this node */
	return is_overlay_between_nodes(ctx, ctx->src_identity) ? TC_ACT_OK : to_host(skb, ctx);
}

/* A packet on its way out of one of the node's devices: 0 or a negative drop reason. */
INLINE int host_to_netdev(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct endpoint_info *host)
{
	int verdict = host_concerned(ctx, parse_packet(skb, ctx), &ctx->saddr);

	if (verdict)
		return verdict < 0 ? verdict : 0;
	ctx->src_identity = IDENTITY_HOST;
	ctx->dst_identity = identity_of(&ctx->daddr);
	if (is_overlay_between_nodes(ctx, ctx->dst_identity))
		return 0;
	if (may_open(ctx))
		name_service(skb, ctx);
	return -host_turn(ctx, host, DIR_EGRESS);
}
