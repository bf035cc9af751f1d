/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sending a translated packet on, which the node's stack would not do: its source may be the node's own address. */
#pragma once
#include "config.h"
#include "context.h"
#include "drop_reasons.h"
#include "ipcache.h"
#include "native.h"
#include "overlay.h"
#include "parse.h"

/* On packets that were translated and go out by a device of the node: to_netdev leaves them alone. */
#define MARK_TRANSLATED 0xc1110002

/* By the kernel's routing table. Returns a verdict for `finish`. */
INLINE int forward_by_route(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	struct bpf_redir_neigh next = {};
	struct bpf_fib_lookup fib;
	long result = route_lookup(skb, ctx, &fib);

	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return -DROP_FIB_LOOKUP_FAILED;
	/* The look-up put the gateway, if there is one, in place of the destination. */
	if (fib.family == FAMILY_IPV4) {
		next.nh_family = FAMILY_IPV4;
		next.ipv4_nh = fib.ipv4_dst;
	} else {
		next.nh_family = FAMILY_IPV6;
		__builtin_memcpy(next.ipv6_nh, fib.ipv6_dst, sizeof(next.ipv6_nh));
	}
	skb->mark = MARK_TRANSLATED;
	return redirect_to_neighbor(fib.ifindex, &next, sizeof(next), 0);
}

/* Onto the overlay, however large: the stack below cuts the outer packet, because the sender thinks it talks to a node. */
INLINE int forward_by_overlay(struct __sk_buff *skb, const struct pkt_ctx *ctx, const struct datapath_config *cfg,
			      const struct remote_endpoint_info *remote)
{
	int reason = set_tunnel(skb, &remote->tunnel_endpoint, ctx->src_identity);

	if (reason)
		return -reason;
	skb->mark = MARK_ENCAPSULATED;
	return bpf_redirect(cfg->overlay_ifindex, 0);
}

/* To where ctx->daddr is: a pod of another node by the overlay if there is one, everything else by a route. */
INLINE int forward_translated(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct datapath_config *cfg = datapath_config();
	struct remote_endpoint_info *remote = ipcache_lookup(&ctx->daddr);
	int reason = hop(skb, ctx);

	if (reason)
		return -reason;
	if (cfg && cfg->overlay_ifindex && !routes_natively(cfg) && remote && is_cluster_pod(remote->identity) &&
	    !addr_is_zero(&remote->tunnel_endpoint))
		return forward_by_overlay(skb, ctx, cfg, remote);
	return forward_by_route(skb, ctx);
}
