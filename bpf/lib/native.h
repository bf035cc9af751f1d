/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Native routing: pods' packets travel between nodes as they are, by the kernel's routing table. What needs an answer
 * (too large, no way, no time to live left) goes to the stack, which gives it. */
#pragma once
#include "deliver.h"
#include "ipcache.h"

enum {
	FAMILY_IPV4 = 2,
	FAMILY_IPV6 = 10,
};

/* BCC's own declaration lacks an argument. */
static long (*redirect_to_neighbor)(u32 ifindex, struct bpf_redir_neigh *to, int size, u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

INLINE bool routes_natively(const struct datapath_config *cfg)
{
	return cfg && (cfg->flags & CONFIG_F_NATIVE_ROUTING);
}

/* Ask the routing table for the way of a packet of `size` bytes; 0: of any. 0: `fib` has the device and both MACs. */
INLINE long route_lookup(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct bpf_fib_lookup *fib, u32 size)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = skb->ifindex;
	fib->l4_protocol = ctx->protocol;
	fib->sport = ctx->sport;
	fib->dport = ctx->dport;
	if (ctx->family == 4) {
		fib->family = FAMILY_IPV4;
		fib->ipv4_src = ctx->saddr.w[3];
		fib->ipv4_dst = ctx->daddr.w[3];
	} else {
		fib->family = FAMILY_IPV6;
		__builtin_memcpy(fib->ipv6_src, &ctx->saddr, sizeof(ctx->saddr));
		__builtin_memcpy(fib->ipv6_dst, &ctx->daddr, sizeof(ctx->daddr));
	}
	/* A learnt path MTU is only looked at for a length. */
	fib->tot_len = size;
	return bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
}

/* From a pod straight to the device that leads to another node's pod. Returns a verdict for `finish`. */
INLINE int route_natively(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct bpf_fib_lookup fib;
	struct eth_header *eth;

	if (ctx->ttl <= 1 || route_lookup(skb, ctx, &fib, size_on_wire(skb, ctx)))
		return TC_ACT_OK;
	if (hop(skb, ctx))
		return TC_ACT_OK;
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_OK;
	__builtin_memcpy(eth->dst, fib.dmac, 6);
	__builtin_memcpy(eth->src, fib.smac, 6);
	return bpf_redirect(fib.ifindex, 0);
}
