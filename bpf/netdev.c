/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hooks on the node's devices: towards the other nodes and the outside world.
 *
 * from_netdev (tc ingress): what arrives at the node
 * to_netdev   (tc egress):  what leaves it
 * host_policy (tail call):  the node's own turn with a packet, then its stack or the ingress of ctx->dst_endpoint
 *
 * Both hooks look at one word first, and whether a host policy selects the node: a packet that concerns none of what this
 * node does here costs two loads and branches. The overlay's own packets are never translated. What cannot be parsed is
 * left to the stack. */
#include "lib/deliver.h"
#include "lib/egress_gw.h"
#include "lib/dsr.h"
#include "lib/dsr_geneve_in.h"
#include "lib/endpoints.h"
#include "lib/forward.h"
#include "lib/hostfw.h"
#include "lib/native.h"
#include "lib/tailcall.h"

/* VXLAN between nodes: UDP to the tunnel port behind a plain IP header. Never translated. */
INLINE bool is_overlay_packet(struct __sk_buff *skb, const struct datapath_config *cfg)
{
	struct ipv4_header *ip;
	struct ipv6_header *ip6;
	struct l4_header *udp;
	void *end;

	/* Else the compiler shares the addresses of skb's fields with the parser, which the verifier does not allow. */
	asm volatile("" : "+r"(skb));
	ip = (void *)(long)skb->data + L3_OFF;
	ip6 = (void *)ip;
	end = (void *)(long)skb->data_end;
	if (skb->protocol == bpf_htons(ETHERTYPE_IPV4)) {
		udp = (void *)(ip + 1);
		return (void *)(udp + 1) <= end && ip->version_ihl == 0x45 && ip->protocol == PROTO_UDP &&
		       !(ip->fragment & bpf_htons(0x1fff)) && udp->dport == cfg->tunnel_port;
	}
	udp = (void *)(ip6 + 1);
	return skb->protocol == bpf_htons(ETHERTYPE_IPV6) && (void *)(udp + 1) <= end &&
	       ip6->next_header == PROTO_UDP && udp->dport == cfg->tunnel_port;
}

/* Native routing: straight to the pod that it is for, from whoever its source is by the address table. Nobody else has
 * the address of a pod of this node. Returns a verdict for `finish`. */
INLINE int deliver_natively(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct endpoint_info *dst)
{
	if (endpoint_by_addr(&ctx->saddr))
		return -DROP_INVALID_SOURCE_IP;
	ctx->src_identity = identity_of(&ctx->saddr);
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

/* Returns a verdict for `finish`. */
INLINE int handle_from_netdev(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct datapath_config *cfg)
{
	struct endpoint_info *dst = routes_natively(cfg) ? endpoint_by_addr(&ctx->daddr) : NULL;

	if (dst)
		return deliver_natively(skb, ctx, dst);
	if (unlikely(is_dsr_geneve(ctx, cfg))) {
		tailcalls.call(skb, TAIL_DSR_GENEVE);
		return -DROP_MISSED_TAIL_CALL;
	}
	if (unlikely(routes_natively(cfg) && has_egress_gateways(cfg)) && is_cluster_pod(identity_of(&ctx->saddr)) &&
	    is_outside(identity_of(&ctx->daddr))) {
		int reason = egress_check_gateway(ctx);

		if (reason)
			return -reason;
	}
	tailcalls.call(skb, TAIL_NAT_IN); /* which asks the host's policy about what is left for the stack */
	return -DROP_MISSED_TAIL_CALL;
}

int from_netdev(struct __sk_buff *skb)
{
	struct datapath_config *cfg = datapath_config();
	bool concerned = cfg && (cfg->flags & CONFIG_F_FROM_NETDEV) && !is_overlay_packet(skb, cfg);
	bool policed = host_endpoint();
	struct pkt_ctx *ctx;

	if (likely(!concerned && !policed))
		return TC_ACT_OK;
	ctx = pkt_context();
	if (!ctx)
		return TC_ACT_SHOT;
	ctx->direction = 0; /* no endpoint's packet yet */
	if (concerned && likely(!parse_packet(skb, ctx)))
		return finish(skb, ctx, handle_from_netdev(skb, ctx, cfg));
	return policed ? finish(skb, ctx, host_from_netdev(skb, ctx)) : TC_ACT_OK;
}

/* Returns a verdict for `finish`. */
INLINE int handle_to_netdev(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	int reason = parse_packet(skb, ctx);

	if (unlikely(reason)) {
		/* A pod's fragment whose first one is forgotten cannot be translated any more. */
		if (reason == DROP_IP_FRAGMENTATION_NOT_SUPPORTED && endpoint_by_addr(&ctx->saddr))
			return -reason;
		return TC_ACT_OK;
	}
	tailcalls.call(skb, TAIL_NAT_OUT);
	return -DROP_MISSED_TAIL_CALL;
}

int to_netdev(struct __sk_buff *skb)
{
	struct datapath_config *cfg = datapath_config();
	bool concerned = cfg && (cfg->flags & CONFIG_F_TO_NETDEV) && !is_overlay_packet(skb, cfg);
	struct endpoint_info *host = host_endpoint();
	struct pkt_ctx *ctx;
	int verdict = 0;

	if (skb->mark == MARK_TRANSLATED) {
		skb->mark = 0;
		return TC_ACT_OK;
	}
	if (likely(!concerned && !host))
		return TC_ACT_OK;
	ctx = pkt_context();
	if (!ctx)
		return TC_ACT_SHOT;
	ctx->direction = 0;
	/* The node's own packets are judged before anything is done to them. */
	if (host)
		verdict = host_to_netdev(skb, ctx, host);
	if (!verdict)
		verdict = concerned ? handle_to_netdev(skb, ctx) : TC_ACT_OK;
	return finish(skb, ctx, verdict);
}

INLINE int handle_host_policy(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct endpoint_info *host = host_endpoint();
	int reason = host ? host_turn(ctx, host, ctx->direction) : 0; /* no policy any more */

	if (reason)
		return -reason;
	if (unlikely(ctx->flags & CTX_F_TRACK))
		tailcalls.call(skb, TAIL_NAT_OUT);
	else if (!ctx->dst_endpoint)
		return TC_ACT_OK;
	else
		tailcalls.call(skb, TAIL_INGRESS);
	return -DROP_MISSED_TAIL_CALL;
}

int host_policy(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	if (!ctx)
		return TC_ACT_SHOT;
	return finish(skb, ctx, handle_host_policy(skb, ctx));
}
