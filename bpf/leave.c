/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* leave (tail call of from_endpoint): a pod's packet that its policy allows, on its way off this node where
 * that is more than the overlay or the stack: paced, by the network's routes, by an egress gateway. */
#include "lib/bandwidth.h"
#include "lib/egress_gw.h"
#include "lib/hostfw.h"
#include "lib/native.h"
#include "lib/refuse.h"

INLINE int handle_leave(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct datapath_config *cfg = datapath_config();
	struct remote_endpoint_info *remote;
	int verdict;

	if (cfg && (cfg->flags & CONFIG_F_PACING)) {
		verdict = pace(skb, ctx);
		if (verdict)
			return -verdict;
		remote = ipcache_lookup(&ctx->daddr);
		if (remote && by_overlay(remote))
			return encapsulate(skb, ctx, remote);
	}
	if (is_cluster_pod(ctx->dst_identity) && routes_natively(cfg))
		return route_natively(skb, ctx);
	/* What others opened is answered the way it came. */
	if (has_egress_gateways(cfg) && is_outside(ctx->dst_identity) && ctx->ct_state != CT_REPLY) {
		verdict = egress_from_endpoint(skb, ctx, cfg);
		if (verdict != EGRESS_NORMAL)
			return verdict;
	}
	return to_host(skb, ctx);
}

int leave(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	return ctx ? finish_or_refuse(skb, ctx, handle_leave(skb, ctx)) : TC_ACT_SHOT;
}
