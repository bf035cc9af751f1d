/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hooks on the node's devices: towards the other nodes and the outside world.
 *
 * from_netdev (tc ingress): what arrives at the node
 * to_netdev   (tc egress):  what leaves it
 *
 * Both look at one word first, and whether a host policy selects the node: a packet that concerns none of what this
 * node does here costs two loads and branches.
 * host_policy (tail call): the node's own turn with a packet, then its stack or the ingress of ctx->dst_endpoint */
#include "lib/deliver.h"
#include "lib/hostfw.h"
#include "lib/tailcall.h"

/* Returns a verdict for `finish`. */
INLINE int handle_from_netdev(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	return TC_ACT_OK;
}

int from_netdev(struct __sk_buff *skb)
{
	struct datapath_config *cfg = datapath_config();
	bool concerned = cfg && (cfg->flags & CONFIG_F_FROM_NETDEV), policed = host_endpoint();
	struct pkt_ctx *ctx;
	int verdict = TC_ACT_OK;

	if (likely(!concerned && !policed))
		return TC_ACT_OK;
	ctx = pkt_context();
	if (!ctx)
		return TC_ACT_SHOT;
	ctx->direction = 0; /* no endpoint's packet yet */
	if (concerned)
		verdict = handle_from_netdev(skb, ctx);
	/* What is left for the stack may be for the node itself. */
	if (policed && verdict == TC_ACT_OK)
		verdict = host_from_netdev(skb, ctx);
	return finish(skb, ctx, verdict);
}

/* Returns a verdict for `finish`. */
INLINE int handle_to_netdev(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	return TC_ACT_OK;
}

int to_netdev(struct __sk_buff *skb)
{
	struct datapath_config *cfg = datapath_config();
	bool concerned = cfg && (cfg->flags & CONFIG_F_TO_NETDEV);
	struct endpoint_info *host = host_endpoint();
	struct pkt_ctx *ctx;
	int verdict = 0;

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
	if (!ctx->dst_endpoint)
		return TC_ACT_OK;
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
