/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The last steps of a packet: into a pod, onto the overlay, or out of the world. */
#pragma once
#include "config.h"
#include "context.h"
#include "endpoints.h"
#include "events.h"
#include "metrics.h"
#include "parse.h"
#include "tailcall.h"

/* Set on packets that from_endpoint encapsulates, so that to_overlay leaves their tunnel key alone. Pods cannot set
 * it: the mark is cleared when a packet changes network namespace. */
#define MARK_ENCAPSULATED 0xc1110001
/* The same for packets on their way to their egress gateway by the node's link: to_netdev lets them be. */
#define MARK_TO_GATEWAY 0xc1110002
/* And for packets that have passed the receiver's policy, on their way through its queue: to_endpoint lets them be. */
#define MARK_DELIVERED 0xc1110003

/* Drop with a DROP event that describes the packet. Returns the verdict for the hook. */
INLINE int drop_packet(struct __sk_buff *skb, struct pkt_ctx *ctx, int reason)
{
	u32 endpoint_id = ctx->direction == DIR_EGRESS ? ctx->src_endpoint : ctx->dst_endpoint;
	struct flow_event *e;

	count_packet(ctx->direction, reason, ctx->ip_len);
	e = flow_event_reserve();
	if (!e) {
		count_lost(EVENT_DROP);
		return TC_ACT_SHOT;
	}
	__builtin_memset(e, 0, sizeof(*e));
	event_header_at(&e->header, EVENT_DROP, endpoint_id, precise_now(ctx));
	if (ctx->family) {
		e->connection.saddr = ctx->saddr;
		e->connection.daddr = ctx->daddr;
		e->connection.sport = ctx->sport;
		e->connection.dport = ctx->dport;
		e->connection.protocol = ctx->protocol;
		e->connection.tcp_flags = ctx->tcp_flags;
	}
	e->connection.direction = ctx->direction;
	e->connection.ct_state = ctx->ct_state;
	e->connection.src_identity = ctx->src_identity;
	e->connection.dst_identity = ctx->dst_identity;
	e->connection.rule_id = ctx->rule_id;
	e->connection.policy_revision = ctx->policy_revision;
	e->connection.drop_reason = reason;
	e->connection.match_type = ctx->match_type;
	e->connection.service_id = ctx->service_id;
	e->packets[0] = 1;
	e->bytes[0] = ctx->ip_len;
	e->l7_ruleset = ctx->l7_ruleset;
	flow_event_submit();
	return TC_ACT_SHOT;
}

/* One hop further: TTL - 1. 0 or a drop reason. */
INLINE int hop(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (data + L3_OFF + sizeof(struct ipv4_header) > end)
		return DROP_INVALID_PACKET_DROPPED;
	if (ctx->family == 4) {
		struct ipv4_header *ip = data + L3_OFF;
		u32 sum = ip->checksum;

		if (ip->ttl <= 1)
			return DROP_TTL_EXCEEDED;
		ip->ttl -= 1;
		sum += bpf_htons(0x0100); /* RFC 1141 */
		ip->checksum = sum + (sum >= 0xffff);
	} else {
		struct ipv6_header *ip = data + L3_OFF;

		if (ip->hop_limit <= 1)
			return DROP_TTL_EXCEEDED;
		ip->hop_limit -= 1;
	}
	return 0;
}

/* Route one hop, onto the pod's link. 0 or a drop reason. */
INLINE int route_to_pod(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct endpoint_info *ep)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct eth_header *eth = data;

	if (data + sizeof(*eth) > end)
		return DROP_INVALID_PACKET_DROPPED;
	__builtin_memcpy(eth->dst, ep->mac, 6);
	__builtin_memcpy(eth->src, ep->node_mac, 6);
	return hop(skb, ctx);
}

enum {
	GSO_BY_FRAGS = 0xffff, /* as skb->gso_size: SCTP, whose segments have no length in common */
	IPV6_LEAST_MTU = 1280, /* RFC 8200, 5 */
	CHECK_SEGMENTS = 1, /* bpf_check_mtu: of offloaded packets the segments (BPF_MTU_CHK_SEGS) */
};

/* No sender is told less than this: no link takes less, or, over IPv4, none that is met. */
INLINE u32 least_mtu(const struct pkt_ctx *ctx)
{
	return ctx->family == 4 ? 0 : IPV6_LEAST_MTU;
}

/* Of the packet, or of each that it will be cut into where it leaves; 0: they differ. */
INLINE u32 size_on_wire(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	if (likely(!skb->gso_size))
		return ctx->ip_len;
	return skb->gso_size == GSO_BY_FRAGS ? 0 : ctx->payload_off - L3_OFF + skb->gso_size;
}

/* Does the packet fit into `mtu`, or each segment of it where it will be cut? */
INLINE bool fits(struct __sk_buff *skb, const struct pkt_ctx *ctx, u32 mtu)
{
	u32 size;

	if (likely(ctx->ip_len <= mtu))
		return true;
	size = size_on_wire(skb, ctx);
	return size && size <= mtu;
}

/* Verdicts on their way to the hook: a TC action, or a drop reason as a negative number, so that each program has one
 * place where packets are dropped. */
INLINE int finish(struct __sk_buff *skb, struct pkt_ctx *ctx, int verdict)
{
	return verdict < 0 ? drop_packet(skb, ctx, -verdict) : verdict;
}

/* Hand the packet to pod ctx->dst_endpoint, by ctx->delivery. Its policy has been asked. Returns a verdict for
 * `finish`. */
INLINE int deliver(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct endpoint_info *ep;
	u32 mtu = 0;
	int reason;

	if (ctx->delivery == DELIVER_PASS) {
		count_packet(DIR_INGRESS, 0, ctx->ip_len);
		return TC_ACT_OK;
	}
	ep = endpoint_by_id(ctx->dst_endpoint);
	if (!ep)
		return -DROP_EP_NOT_READY;
	/* Other pods take what is larger than their interface, too. */
	if (unlikely(ep->flags & ENDPOINT_F_INGRESS_RATE) && bpf_check_mtu(skb, ep->ifindex, &mtu, 0, CHECK_SEGMENTS)) {
		ctx->fitting = mtu;
		tailcalls.call(skb, TAIL_TOO_LARGE);
		return -DROP_PACKET_TOO_LARGE;
	}
	reason = route_to_pod(skb, ctx, ep);
	if (reason)
		return -reason;
	/* A frame for somebody else's MAC would be refused by the pod's stack. */
	if (skb->pkt_type != 0)
		bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
	count_packet(DIR_INGRESS, 0, ctx->ip_len);
	if (unlikely(ep->flags & ENDPOINT_F_INGRESS_RATE)) {
		skb->mark = MARK_DELIVERED;
		return bpf_redirect(ep->ifindex, 0);
	}
	return bpf_redirect_peer(ep->ifindex, 0);
}

/* The same as a program's last word. */
INLINE int deliver_to_endpoint(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	return finish(skb, ctx, deliver(skb, ctx));
}
