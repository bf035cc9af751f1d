/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hooks on the node's devices: towards the other nodes and the outside world.
 *
 * from_netdev (tc ingress): what arrives at the node
 * to_netdev   (tc egress):  what leaves it
 *
 * Both look at one word first: a packet that concerns none of what this node does here costs a load and a branch. */
#include "lib/deliver.h"
#include "lib/tailcall.h"

/* Returns a verdict for `finish`. */
INLINE int handle_from_netdev(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	return TC_ACT_OK;
}

int from_netdev(struct __sk_buff *skb)
{
	struct datapath_config *cfg = datapath_config();
	struct pkt_ctx *ctx;

	if (likely(!cfg || !(cfg->flags & CONFIG_F_FROM_NETDEV)))
		return TC_ACT_OK;
	ctx = pkt_context();
	if (!ctx)
		return TC_ACT_SHOT;
	ctx->direction = 0; /* no endpoint's packet yet */
	return finish(skb, ctx, handle_from_netdev(skb, ctx));
}

/* Returns a verdict for `finish`. */
INLINE int handle_to_netdev(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	return TC_ACT_OK;
}

int to_netdev(struct __sk_buff *skb)
{
	struct datapath_config *cfg = datapath_config();
	struct pkt_ctx *ctx;

	if (likely(!cfg || !(cfg->flags & CONFIG_F_TO_NETDEV)))
		return TC_ACT_OK;
	ctx = pkt_context();
	if (!ctx)
		return TC_ACT_SHOT;
	ctx->direction = 0;
	return finish(skb, ctx, handle_to_netdev(skb, ctx));
}
