/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Translation at the node's devices, as tail calls of the hooks there and of the overlay's.
 *
 * nat_out (from to_netdev):                 pods' packets get the node's address; answers of Services get theirs
 * nat_in  (from from_netdev, from_overlay): the way back, then into the pod's ingress stage
 */
#include "lib/deliver.h"
#include "lib/hostfw.h"
#include "lib/masquerade.h"
#include "lib/netdev.h"
#include "lib/snat.h"
#include "lib/tailcall.h"

/* The entry that the packet, or the packet inside an ICMP error, belongs to; work->key is its key. */
INLINE struct nat_entry *nat_find(const struct pkt_ctx *ctx, struct nat_work *work, u8 way)
{
	if (unlikely(ctx->flags & CTX_F_ICMP_ERROR))
		nat_key_set_inner(ctx, &work->key, way);
	else
		nat_key_set(ctx, &work->key, way);
	return nat_table.lookup(&work->key);
}

/* Protocols of which connections can be told apart. */
INLINE bool nat_supports(const struct pkt_ctx *ctx)
{
	return ctx->protocol == PROTO_TCP || ctx->protocol == PROTO_UDP || ctx->protocol == PROTO_SCTP ||
	       nat_is_echo(ctx);
}

/* A packet without an entry leaves. `*made` is its new entry, if it is to have one. 0 or a drop reason. */
INLINE int nat_out_new(struct pkt_ctx *ctx, struct nat_work *work, struct netdev_info *dev, struct nat_entry **made)
{
	struct datapath_config *cfg = datapath_config();
	struct addr *own = netdev_address(dev, ctx->family);
	u16 flags = 0;

	if (!cfg || !own)
		return 0;
	if (addr_equal(&ctx->saddr, own)) {
		if (!nat_supports(ctx) || (!is_icmp(ctx->protocol) && !nat_port_in_range(cfg, ctx->sport)))
			return 0;
		flags = NAT_F_NODE;
	} else if (!wants_masquerade(ctx, cfg)) {
		return 0;
	} else if (ctx->flags & CTX_F_ICMP_ERROR) {
		return 0; /* about a connection that is not translated */
	} else if (!nat_supports(ctx)) {
		return DROP_UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE;
	}
	return nat_create_source(ctx, cfg, work, own, flags, made);
}

INLINE int handle_nat_out(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct netdev_info *dev = netdev_by_ifindex(skb->ifindex);
	struct nat_work *work = nat_work();
	struct nat_entry *entry = NULL;
	int reason;

	if (!dev || !work)
		return TC_ACT_OK;
	entry = nat_find(ctx, work, NAT_OUT);
	if (likely(entry)) {
		if (!(ctx->flags & CTX_F_ICMP_ERROR))
			nat_follow(ctx, work, entry);
	} else {
		reason = nat_out_new(ctx, work, dev, &entry);
		if (reason)
			return -reason;
		if (!entry)
			return TC_ACT_OK;
	}
	reason = nat_translate(skb, ctx, entry);
	return reason ? -reason : TC_ACT_OK;
}

int nat_out(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	return ctx ? finish(skb, ctx, handle_nat_out(skb, ctx)) : TC_ACT_SHOT;
}

/* A verdict that `finish` does not know: nothing more to do here. */
#define NAT_LEAVE 100

/* The stack gets it, if the host's policy agrees. Returns a verdict for `finish`. */
INLINE int nat_leave(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct datapath_config *cfg = datapath_config();

	if (likely(!host_endpoint()))
		return TC_ACT_OK;
	if (!cfg || skb->ifindex != cfg->overlay_ifindex)
		return host_from_netdev(skb, ctx);
	ctx->dst_identity = identity_of(&ctx->daddr);
	return to_host(skb, ctx);
}

/* To the pod that the packet is for now. */
INLINE int nat_deliver(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct endpoint_info *dst = endpoint_by_addr(&ctx->daddr);

	if (!dst)
		return NAT_LEAVE;
	ctx->src_identity = identity_of(&ctx->saddr);
	ctx->dst_endpoint = dst->id;
	ctx->delivery = DELIVER_PEER;
	tailcalls.call(skb, TAIL_INGRESS);
	return -DROP_MISSED_TAIL_CALL;
}

INLINE int handle_nat_in(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct nat_work *work = nat_work();
	struct nat_entry *entry;
	int reason;

	if (!work)
		return NAT_LEAVE;
	entry = nat_find(ctx, work, NAT_IN);
	if (!entry || ctx->now_ns > entry->expires_ns)
		return NAT_LEAVE;
	if (!(ctx->flags & CTX_F_ICMP_ERROR))
		nat_follow(ctx, work, entry);
	if (entry->flags & NAT_F_NODE && nat_is_identity(&work->key, entry))
		return NAT_LEAVE;
	reason = nat_translate(skb, ctx, entry);
	return reason ? -reason : nat_deliver(skb, ctx);
}

int nat_in(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	int verdict;

	if (!ctx)
		return TC_ACT_SHOT;
	verdict = handle_nat_in(skb, ctx);
	return finish(skb, ctx, verdict == NAT_LEAVE ? nat_leave(skb, ctx) : verdict);
}
