/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Translated packets leave (tail calls of nat.c and north_south.c).
 *
 * nat_forward: by the overlay or by a route; what does not fit there goes to
 * too_large:   which tells the sender what would, or has the stack cut the packet
 */
#include "lib/deliver.h"
#include "lib/dsr.h"
#include "lib/dsr_geneve.h"
#include "lib/forward.h"
#include "lib/hostfw.h"
#include "lib/nat_paths.h"
#include "lib/too_large.h"

#define LOOPBACK_IFINDEX 1 /* in every network namespace */

/* The packet, with `*option` bytes more, is larger than way->mtu. 0 to go on all the same, or a verdict. */
INLINE int make_fit(struct __sk_buff *skb, struct pkt_ctx *ctx, struct way *way, u32 *option)
{
	u32 size = size_on_wire(skb, ctx);
	int reason;

	if (!underlay_is_v6(way) && !is_whole(skb, ctx)) {
		if (way->remote)
			return 0; /* the overlay's own packet is cut */
		ctx->flags |= CTX_F_CUT;
		return -DROP_PACKET_TOO_LARGE;
	}
	ctx->fitting = way->mtu - *option;
	if (ctx->fitting < least_mtu(ctx))
		ctx->fitting = least_mtu(ctx);
	if (size > ctx->fitting)
		return -DROP_PACKET_TOO_LARGE;
	/* No sender of IPv6 makes packets smaller than that. */
	ctx->fitting = 0;
	*option = 0;
	reason = find_way(skb, ctx, size, way);
	if (reason)
		return -reason;
	return way->mtu && (!way->remote || underlay_is_v6(way)) ? -DROP_PACKET_TOO_LARGE : 0;
}

/* By Geneve to the backend's node. A verdict for `finish`; NAT_LEAVE: it cannot, and nothing was touched. */
INLINE int forward_in_geneve(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct datapath_config *cfg)
{
	struct dsr_way way = {};
	int reason;

	if (!dsr_find_way(skb, ctx, cfg, &ctx->daddr, &way)) {
		if (!way.route.mtu || way.route.mtu < least_mtu(ctx) || !is_whole(skb, ctx))
			return NAT_LEAVE;
		ctx->fitting = way.route.mtu;
		return -DROP_PACKET_TOO_LARGE;
	}
	reason = hop(skb, ctx);
	if (!reason)
		reason = dsr_wrap(skb, ctx, cfg, &way);
	return reason ? -reason : send_by_route(skb, &way.route);
}

INLINE int handle_nat_forward(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct datapath_config *cfg = datapath_config();
	u32 option = 0, limit = 0;
	struct way way = {};
	int reason, verdict = 0;

	/* A datagram without room for it relies on the one before. */
	if (unlikely(ctx->flags & CTX_F_DSR) && cfg && cfg->dsr_port) {
		reason = forward_in_geneve(skb, ctx, cfg);
		if (reason != NAT_LEAVE)
			return reason;
	} else if ((ctx->flags & CTX_F_DSR) && dsr_carries(skb, ctx)) {
		limit = dsr_limit(skb, ctx);
		option = !limit || is_whole(skb, ctx) ? dsr_length(ctx->family) : 0;
	}
	reason = find_way(skb, ctx, size_on_wire(skb, ctx) + option, &way);
	if (reason)
		return -reason;
	if (unlikely(option && limit && !way.mtu))
		way.mtu = limit;
	if (unlikely(way.mtu))
		verdict = make_fit(skb, ctx, &way, &option);
	if (unlikely(verdict && !(ctx->flags & CTX_F_CUT)))
		return verdict;
	if (option) {
		reason = dsr_insert(skb, ctx);
		if (reason)
			return -reason;
	}
	return likely(!verdict) ? send_by(skb, ctx, &way) : verdict;
}

int nat_forward(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	int verdict;

	if (!ctx)
		return TC_ACT_SHOT;
	verdict = handle_nat_forward(skb, ctx);
	/* An error is not answered, and says already what it is about. */
	if (unlikely(verdict == -DROP_PACKET_TOO_LARGE && !(ctx->flags & CTX_F_ICMP_ERROR)))
		tailcalls.call(skb, TAIL_TOO_LARGE);
	return finish(skb, ctx, verdict);
}

/* Undo the translation at the node's devices of both ends or the source, or that of a pod's packet to a Service. 0 or a
 * drop reason. */
INLINE int as_written(struct __sk_buff *skb, struct pkt_ctx *ctx, u32 ends)
{
	bool of_pod = ctx->flags & CTX_F_TO_SERVICE;
	struct nat nat = {
		.saddr = ctx->inner_saddr,
		.daddr = of_pod ? ctx->service_address : ctx->inner_daddr,
		.sport = ctx->inner_sport,
		.dport = of_pod ? ctx->service_port : ctx->inner_dport,
		.flags = of_pod ? NAT_DESTINATION : ends,
	};
	int reason = nat_apply(skb, ctx, &nat);

	ctx->src_identity = identity_of(&ctx->saddr);
	return reason;
}

/* The answer to a packet that had left the stack: to a pod of this node, to this node itself, or to where a route leads.
 * Returns a TC action. */
INLINE int send_inwards(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct endpoint_info *pod = endpoint_by_addr(&ctx->saddr);
	struct eth_header *eth = packet_bytes(skb, 0, sizeof(*eth));
	struct addr sender = ctx->saddr;
	struct way way = {};

	if (!eth)
		return TC_ACT_SHOT;
	if (pod) {
		__builtin_memcpy(eth->dst, pod->mac, 6);
		__builtin_memcpy(eth->src, pod->node_mac, 6);
		skb->mark = MARK_DELIVERED;
		return bpf_redirect(pod->ifindex, 0);
	}
	if (identity_of(&ctx->saddr) == IDENTITY_HOST) {
		__builtin_memset(eth->dst, 0, 6); /* the loopback device's */
		skb->mark = 0;
		return bpf_redirect(LOOPBACK_IFINDEX, BPF_F_INGRESS);
	}
	ctx->saddr = ctx->daddr;
	ctx->daddr = sender;
	if (find_route(skb, ctx, 0, &way) || way.mtu)
		return TC_ACT_SHOT;
	skb->mark = 0; /* what nat_in did to the packet, nat_out does to the quotation */
	return redirect_to_neighbor(way.ifindex, &way.next, sizeof(way.next), 0);
}

/* The answer goes back the way the packet came. Returns a TC action. */
INLINE int send_back(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	struct remote_endpoint_info *sender;

	/* Into the pod without asking its policy: nobody else speaks to it. */
	if (ctx->src_endpoint)
		return bpf_redirect_peer(skb->ifindex, 0);
	if (came_by_overlay(skb)) {
		sender = ipcache_lookup(&ctx->saddr);
		if (!sender || !by_overlay(sender) || set_tunnel(skb, &sender->tunnel_endpoint, identity_of(&ctx->daddr)))
			return TC_ACT_SHOT;
		skb->mark = MARK_ENCAPSULATED;
	} else {
		skb->mark = MARK_TRANSLATED;
	}
	return bpf_redirect(skb->ifindex, 0);
}

/* The stack cuts what it forwards. It would not take a packet with the node's own address for its source, so the source
 * is translated where the pieces leave (nat_out): by an entry of its own. Returns a verdict for `finish`. */
INLINE int leave_to_stack(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct nat_work *work = nat_work();
	struct nat_entry *known;
	int reason;

	if (!work)
		return -DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
	work->entry.saddr = ctx->saddr;
	work->entry.sport = ctx->sport;
	reason = as_written(skb, ctx, NAT_SOURCE);
	if (reason)
		return -reason;
	nat_key_set(ctx, &work->key, NAT_OUT);
	work->entry.daddr = ctx->daddr;
	work->entry.dport = ctx->dport;
	if (nat_is_identity(&work->key, &work->entry))
		return TC_ACT_OK;
	known = nat_table.lookup(&work->key);
	if (known && (known->flags & NAT_F_ANSWER)) /* of a pod of this node */
		return TC_ACT_OK;
	work->entry.flags = NAT_F_DSR; /* answers have theirs */
	work->entry.slot = 0;
	work->entry.service_id = 0; /* its end is not a backend's */
	work->entry.pad = 0;
	work->entry.created_ns = ctx->now_ns;
	work->entry.expires_ns = ctx->now_ns + nat_timeout(ctx->protocol, 0);
	return nat_table.update(&work->key, &work->entry) ? -DROP_NO_MAPPING_FOR_NAT_MASQUERADE : TC_ACT_OK;
}

int too_large(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	int reason = 0;

	if (!ctx)
		return TC_ACT_SHOT;
	if (ctx->flags & CTX_F_CUT)
		return finish(skb, ctx, leave_to_stack(skb, ctx));
	if (ctx->flags & (CTX_F_NORTH_SOUTH | CTX_F_TO_SERVICE))
		reason = as_written(skb, ctx, NAT_SOURCE | NAT_DESTINATION);
	/* A pod's own has been reported where it was dropped. */
	if (!(ctx->flags & CTX_F_REFUSE))
		drop_packet(skb, ctx, reason ? reason : DROP_PACKET_TOO_LARGE);
	if (reason || !ctx->fitting || !may_be_told(skb, ctx) || too_large_answer(skb, ctx))
		return TC_ACT_SHOT;
	return ctx->flags & CTX_F_LEAVING ? send_inwards(skb, ctx) : send_back(skb, ctx);
}
