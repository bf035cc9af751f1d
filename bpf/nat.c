/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Translation at the node's devices, as tail calls of the hooks there and of the overlay's.
 *
 * nat_out (from to_netdev, to_overlay, and from_endpoint for answers of Services):
 *         pods' packets get the node's address; answers of Services get theirs
 * nat_in  (from from_netdev, from_overlay):
 *         what belongs to a known connection, then the pod's ingress stage or away; the rest may be for a Service
 */
#include "lib/deliver.h"
#include "lib/egress_gw.h"
#include "lib/hostfw.h"
#include "lib/dsr.h"
#include "lib/lb.h"
#include "lib/masquerade.h"
#include "lib/nat_paths.h"
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

/* Can the packet open a connection that can be told from others? */
INLINE bool nat_supports(const struct pkt_ctx *ctx)
{
	return ctx->protocol == PROTO_TCP || ctx->protocol == PROTO_UDP || ctx->protocol == PROTO_SCTP ||
	       (is_icmp(ctx->protocol) && is_icmp_request(ctx->family, ctx->icmp_type));
}

/* What becomes of a packet without an entry. */
enum nat_choice {
	NAT_AS_IT_IS = 0,
	NAT_NEW_SOURCE = 1, /* work->entry.saddr is its source from now on */
	NAT_OWN = 2,        /* the node's own: its port is taken, nothing changes */
};

/* Of a pod that has an egress gateway: an enum nat_choice or a negative drop reason. */
INLINE int nat_choose_egress(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct nat_work *work,
			     const struct egress_entry *egress)
{
	if (!(egress->flags & EGRESS_F_HERE))
		return skb->mark == MARK_TO_GATEWAY ? NAT_AS_IT_IS : -DROP_NO_EGRESS_GATEWAY;
	if (addr_is_zero(&egress->address))
		return -DROP_NO_EGRESS_IP;
	if ((ctx->flags & CTX_F_ICMP_ERROR) || !nat_supports(ctx))
		return -DROP_UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE;
	work->entry.saddr = egress->address;
	return NAT_NEW_SOURCE;
}

INLINE int nat_choose(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct datapath_config *cfg,
		      struct nat_work *work, struct netdev_info *dev)
{
	struct egress_entry *egress;
	struct addr *own;

	if (unlikely(has_egress_gateways(cfg)) && is_cluster_pod(identity_of(&ctx->saddr)) &&
	    is_outside(identity_of(&ctx->daddr)) && !is_answer_of_pod(ctx)) {
		egress = egress_lookup(&ctx->saddr, &ctx->daddr);
		if (egress)
			return nat_choose_egress(skb, ctx, work, egress);
	}
	own = netdev_address(dev, ctx->family);
	if (!own)
		return NAT_AS_IT_IS;
	work->entry.saddr = *own;
	if (addr_equal(&ctx->saddr, own)) {
		if (!nat_supports(ctx) || (!is_icmp(ctx->protocol) && !nat_port_in_range(cfg, ctx->sport)))
			return NAT_AS_IT_IS;
		return NAT_OWN;
	}
	if (!wants_masquerade(ctx, cfg) || (ctx->flags & CTX_F_ICMP_ERROR))
		return NAT_AS_IT_IS; /* an error is about a connection that is not translated */
	return nat_supports(ctx) ? NAT_NEW_SOURCE : -DROP_UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE;
}

/* A packet without an entry leaves. `*made` is its new entry, if it is to have one. 0 or a drop reason. */
INLINE int nat_out_new(struct __sk_buff *skb, struct pkt_ctx *ctx, struct nat_work *work, struct netdev_info *dev,
		       struct nat_entry **made)
{
	struct datapath_config *cfg = datapath_config();
	int choice = cfg ? nat_choose(skb, ctx, cfg, work, dev) : NAT_AS_IT_IS;

	if (choice <= NAT_AS_IT_IS)
		return -choice;
	return nat_create_source(ctx, cfg, work, &work->entry.saddr, choice == NAT_OWN ? NAT_F_NODE : 0, made);
}

INLINE int handle_nat_out(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct netdev_info *dev = netdev_by_ifindex(skb->ifindex);
	struct nat_work *work = nat_work();
	struct nat_entry *entry = NULL;
	int reason;

	if (!work)
		return TC_ACT_OK;
	entry = nat_find(ctx, work, NAT_OUT);
	if (likely(entry)) {
		if (!(ctx->flags & CTX_F_ICMP_ERROR))
			nat_follow(ctx, work, entry);
	} else {
		reason = dev ? nat_out_new(skb, ctx, work, dev, &entry) : 0;
		if (reason)
			return -reason;
		if (!entry)
			return TC_ACT_OK;
	}
	reason = nat_translate(skb, ctx, entry);
	if (reason)
		return -reason;
	if (dev)
		return TC_ACT_OK;
	/* Straight from a pod. The stack would not take a packet from there that has the node's own address. */
	ctx->src_identity = IDENTITY_HOST;
	tailcalls.call(skb, TAIL_NAT_FORWARD);
	return -DROP_MISSED_TAIL_CALL;
}

int nat_out(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	return ctx ? finish(skb, ctx, handle_nat_out(skb, ctx)) : TC_ACT_SHOT;
}

/* A packet that may open a connection meets what is left of an earlier one, or a backend that is gone. */
INLINE bool nat_is_stale(const struct pkt_ctx *ctx, const struct nat_entry *entry)
{
	struct backend *b;

	if (ctx->protocol == PROTO_TCP && nat_timeout(PROTO_TCP, entry->flags) == CT_TIMEOUT_CLOSE)
		return true;
	if (entry->flags & NAT_F_SEEN_REPLY)
		return false;
	b = backend_at(entry->service_id, entry->slot);
	return !b || b->port != entry->dport || !addr_equal(&b->address, &entry->daddr);
}

/* The entry of a packet that came in, if it may still be used. */
INLINE struct nat_entry *nat_current(const struct pkt_ctx *ctx, struct nat_work *work)
{
	struct nat_entry *entry = nat_find(ctx, work, NAT_IN);
	bool over;

	if (!entry || (ctx->flags & CTX_F_ICMP_ERROR))
		return entry;
	over = ctx->now_ns > entry->expires_ns;
	if (unlikely(entry->service_id && !(entry->flags & NAT_F_ANSWER) && may_open(ctx)) &&
	    (over || nat_is_stale(ctx, entry))) {
		nat_forget(work, entry);
		return NULL;
	}
	if (over)
		return NULL;
	nat_follow(ctx, work, entry);
	return entry;
}

INLINE int handle_nat_in(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct datapath_config *cfg = datapath_config();
	struct nat_work *work = nat_work();
	struct nat_entry *entry;

	if (!work || !cfg)
		return NAT_LEAVE;
	entry = nat_current(ctx, work);
	if (entry)
		return nat_is_identity(&work->key, entry) ? NAT_LEAVE : nat_go_on(skb, ctx, entry);
	if (!(cfg->flags & CONFIG_F_NORTH_SOUTH) || (ctx->flags & CTX_F_ICMP_ERROR))
		return NAT_LEAVE;
	tailcalls.call(skb, unlikely(!is_plain_header(ctx)) ? TAIL_DSR_LEARN : TAIL_NORTH_SOUTH);
	return -DROP_MISSED_TAIL_CALL;
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
