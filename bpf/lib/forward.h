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

/* The way that a translated packet takes. */
struct way {
	struct remote_endpoint_info *remote; /* the overlay's other end; NULL: by a route */
	struct bpf_redir_neigh next;         /* by a route */
	u32 ifindex;
	u32 mtu; /* 0: the packet fits; else what would, and a route's other fields are not known */
};

/* The way that the routing table has found. */
INLINE void follow_route(const struct bpf_fib_lookup *fib, struct way *way)
{
	/* The look-up put the gateway, if there is one, in place of the destination. */
	if (fib->family == FAMILY_IPV4) {
		way->next.nh_family = FAMILY_IPV4;
		way->next.ipv4_nh = fib->ipv4_dst;
	} else {
		way->next.nh_family = FAMILY_IPV6;
		__builtin_memcpy(way->next.ipv6_nh, fib->ipv6_dst, sizeof(way->next.ipv6_nh));
	}
	way->ifindex = fib->ifindex;
}

/* By the kernel's routing table. 0 or a drop reason. */
INLINE int find_route(struct __sk_buff *skb, const struct pkt_ctx *ctx, u32 size, struct way *way)
{
	struct bpf_fib_lookup fib;
	long result = route_lookup(skb, ctx, &fib, size);

	way->mtu = 0;
	if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED) {
		way->mtu = fib.tot_len; /* the kernel has put there what fits */
		return 0;
	}
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return DROP_FIB_LOOKUP_FAILED;
	follow_route(&fib, way);
	return 0;
}

/* Nobody cuts the overlay's packets there. */
INLINE bool underlay_is_v6(const struct way *way)
{
	return way->remote && !addr_is_v4(&way->remote->tunnel_endpoint);
}

/* To where ctx->daddr is, for a packet of `size` bytes: a pod of another node by the overlay if there is one, everything
 * else by a route. 0 or a drop reason. */
INLINE int find_way(struct __sk_buff *skb, const struct pkt_ctx *ctx, u32 size, struct way *way)
{
	struct datapath_config *cfg = datapath_config();
	struct remote_endpoint_info *remote = ipcache_lookup(&ctx->daddr);

	if (!cfg || !cfg->overlay_ifindex || routes_natively(cfg) || !remote || !is_cluster_pod(remote->identity) ||
	    !by_overlay(remote))
		return find_route(skb, ctx, size, way);
	way->remote = remote;
	way->ifindex = cfg->overlay_ifindex;
	if (underlay_is_v6(way))
		way->mtu = too_large_for_underlay6(skb, size, cfg, &remote->tunnel_endpoint);
	else
		way->mtu = cfg->path_mtu && size > cfg->path_mtu ? cfg->path_mtu : 0;
	return 0;
}

/* Out by the route, whatever the packet is by now. Returns a verdict for `finish`. */
INLINE int send_by_route(struct __sk_buff *skb, struct way *way)
{
	skb->mark = MARK_TRANSLATED;
	return redirect_to_neighbor(way->ifindex, &way->next, sizeof(way->next), 0);
}

/* One hop further, and off. Returns a verdict for `finish`. */
INLINE int send_by(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct way *way)
{
	int reason = hop(skb, ctx);

	if (!reason && way->remote)
		reason = set_tunnel(skb, &way->remote->tunnel_endpoint, ctx->src_identity);
	if (reason)
		return -reason;
	if (way->remote) {
		skb->mark = MARK_ENCAPSULATED;
		return bpf_redirect(way->ifindex, 0);
	}
	return send_by_route(skb, way);
}
