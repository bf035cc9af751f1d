/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hooks on the VXLAN device.
 *
 * from_overlay (tc ingress): decapsulated packet -> identity from the VNI -> ingress of a local pod, or up the stack
 * to_overlay   (tc egress):  the node's own packets to remote pods -> tunnel key; pods' packets have theirs already
 */
#include "lib/deliver.h"
#include "lib/egress_gw.h"
#include "lib/dsr.h"
#include "lib/hostfw.h"
#include "lib/ipcache.h"
#include "lib/overlay.h"
#include "lib/tailcall.h"

/* The link's own chatter ends here: it is counted, nobody is told. */
INLINE int swallow(const struct pkt_ctx *ctx)
{
	count_packet(0, DROP_UNSUPPORTED_L3_PROTOCOL, ctx->ip_len);
	return TC_ACT_SHOT;
}

INLINE int handle_from_overlay(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct addr node = {};
	int reason = parse_packet(skb, ctx), identity = overlay_identity(skb, &node);
	struct datapath_config *cfg = datapath_config();
	struct endpoint_info *dst;

	if (reason == PARSE_LINK_SCOPE)
		return swallow(ctx);
	if (reason)
		return -reason;
	if (identity < 0)
		return -DROP_ERROR_RETRIEVING_TUNNEL_KEY;
	ctx->src_identity = identity == IDENTITY_WORLD ? outside_identity(&ctx->saddr) : identity;
	reason = check_overlay_sender(ctx, &node);
	if (reason)
		return -reason;
	/* The inner frame carries MACs of another node: it is for us all the same. */
	if (skb->pkt_type != 0)
		bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
	dst = endpoint_by_addr(&ctx->daddr);
	if (!dst) {
		if (speaks_vxlan(ctx))
			return -DROP_INVALID_PACKET_DROPPED;
		/* Other nodes' pods leave the cluster here only if this is their gateway. */
		if (unlikely(is_cluster_pod(identity) && is_outside(identity_of(&ctx->daddr)))) {
			reason = egress_check_gateway(ctx);
			if (reason)
				return -reason;
		}
		if (cfg && (cfg->flags & CONFIG_F_NORTH_SOUTH)) {
			tailcalls.call(skb, TAIL_NAT_IN);
			return -DROP_MISSED_TAIL_CALL;
		}
		if (likely(!host_endpoint()))
			return TC_ACT_OK;
		ctx->dst_identity = identity_of(&ctx->daddr);
		return to_host(skb, ctx);
	}
	ctx->dst_endpoint = dst->id;
	ctx->delivery = DELIVER_PEER;
	if (unlikely(!is_plain_header(ctx))) {
		tailcalls.call(skb, TAIL_DSR_LEARN);
		return -DROP_MISSED_TAIL_CALL;
	}
	tailcalls.call(skb, TAIL_INGRESS);
	KNOWN_SLOT(TAIL_INGRESS);
	return -DROP_MISSED_TAIL_CALL;
}

int from_overlay(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	if (!ctx)
		return TC_ACT_SHOT;
	ctx->direction = DIR_INGRESS;
	return finish(skb, ctx, handle_from_overlay(skb, ctx));
}

INLINE int handle_to_overlay(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	int reason = parse_packet(skb, ctx);
	struct datapath_config *cfg = datapath_config();
	struct remote_endpoint_info *from, *remote;

	if (reason == PARSE_LINK_SCOPE)
		return swallow(ctx);
	if (reason)
		return -reason;
	from = ipcache_lookup(&ctx->saddr);
	ctx->src_identity = from ? from->identity : world_identity(&ctx->saddr);
	remote = ipcache_lookup(&ctx->daddr);
	if (!remote || !by_overlay(remote))
		return -DROP_NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT;
	ctx->dst_identity = remote->identity;
	/* The stack measured with the overlay device alone: it knows nothing of the way to this node. */
	if (unlikely(cfg && !addr_is_v4(&remote->tunnel_endpoint)) &&
	    check_underlay6(skb, ctx, cfg, &remote->tunnel_endpoint)) {
		ctx->flags |= CTX_F_LEAVING;
		tailcalls.call(skb, TAIL_TOO_LARGE);
		return -DROP_PACKET_TOO_LARGE;
	}
	reason = set_tunnel(skb, &remote->tunnel_endpoint, ctx->src_identity);
	if (reason)
		return -reason;
	if (ctx->src_identity != IDENTITY_HOST)
		return TC_ACT_OK;
	if (cfg && (cfg->flags & CONFIG_F_NORTH_SOUTH))
		ctx->flags |= CTX_F_TRACK;
	ctx->direction = DIR_EGRESS;
	if (unlikely(host_endpoint())) {
		if (may_open(ctx))
			name_service(skb, ctx);
		tailcalls.call(skb, TAIL_HOST_POLICY);
	} else if (ctx->flags & CTX_F_TRACK)
		tailcalls.call(skb, TAIL_NAT_OUT);
	else
		return TC_ACT_OK;
	return -DROP_MISSED_TAIL_CALL;
}

int to_overlay(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	if (skb->mark == MARK_ENCAPSULATED) {
		skb->mark = 0;
		return TC_ACT_OK;
	}
	if (!ctx)
		return TC_ACT_SHOT;
	ctx->direction = 0; /* nobody's policy: the packet belongs to no endpoint of ours */
	return finish(skb, ctx, handle_to_overlay(skb, ctx));
}
