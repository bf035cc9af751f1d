/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Out again without the stack: by a route whose neighbour is known, bare or inside of VXLAN over IPv4. Everything that
 * can fail comes before the first byte is written, so that from_netdev gets an untouched packet. */
#pragma once
#include "xdp_packet.h"

struct vxlan_header {
	struct eth_header eth;
	struct ipv4_header ip;
	u16 sport;
	u16 dport;
	u16 length;
	u16 checksum;
	u32 flags;
	u32 vni;
} __attribute__((packed));
_Static_assert(sizeof(struct vxlan_header) == 50, "vxlan_header");

#define VXLAN_VALID_VNI 0x08000000

/* The way to `to`: 0, or the packet is not for us. */
INLINE long xdp_route(struct xdp_md *xdp, const struct pkt_ctx *ctx, struct bpf_fib_lookup *fib, const struct addr *from,
		      const struct addr *to, u32 length)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = xdp->ingress_ifindex;
	fib->l4_protocol = ctx->protocol;
	fib->tot_len = length;
	if (addr_is_v4(to)) {
		fib->family = 2;
		fib->ipv4_src = from->w[3];
		fib->ipv4_dst = to->w[3];
	} else {
		fib->family = 10;
		__builtin_memcpy(fib->ipv6_src, from, sizeof(*from));
		__builtin_memcpy(fib->ipv6_dst, to, sizeof(*to));
	}
	return bpf_fib_lookup(xdp, fib, sizeof(*fib), 0);
}

/* MACs, and out. */
INLINE int xdp_leave(struct xdp_md *xdp, const struct bpf_fib_lookup *fib)
{
	struct eth_header *eth = (void *)(long)xdp->data;

	if ((void *)(eth + 1) > (void *)(long)xdp->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(eth->dst, fib->dmac, 6);
	__builtin_memcpy(eth->src, fib->smac, 6);
	return fib->ifindex == xdp->ingress_ifindex ? XDP_TX : bpf_redirect(fib->ifindex, 0);
}

/* The frame goes into VXLAN, for which there is room already. */
INLINE bool xdp_wrap(struct xdp_md *xdp, const struct datapath_config *cfg, const struct addr *to, const struct pkt_ctx *ctx,
		     u32 identity)
{
	struct vxlan_header *outer = (void *)(long)xdp->data;

	if ((void *)(outer + 1) > (void *)(long)xdp->data_end)
		return false;
	__builtin_memset(outer, 0, sizeof(*outer));
	outer->eth.protocol = bpf_htons(ETHERTYPE_IPV4);
	outer->ip.version_ihl = 0x45;
	outer->ip.total_length = bpf_htons(ctx->ip_len + sizeof(*outer));
	outer->ip.ttl = 64;
	outer->ip.protocol = PROTO_UDP;
	outer->ip.saddr = cfg->tunnel_address.w[3];
	outer->ip.daddr = to->w[3];
	outer->ip.checksum = xdp_fold(bpf_csum_diff(NULL, 0, (void *)&outer->ip, sizeof(outer->ip), 0));
	/* Connections spread over the receiver's queues by it. */
	outer->sport = bpf_htons(0xc000 | ((bpf_ntohs(ctx->sport) ^ ctx->saddr.w[3] ^ (ctx->saddr.w[3] >> 16)) & 0x3fff));
	outer->dport = cfg->tunnel_port;
	outer->length = bpf_htons(ctx->ip_len + sizeof(*outer) - sizeof(struct ipv4_header));
	outer->flags = bpf_htonl(VXLAN_VALID_VNI);
	outer->vni = bpf_htonl(identity << 8);
	return true;
}

/* Who the packet is from, for the node that gets it: us, or the client. */
INLINE u32 xdp_identity(const struct pkt_ctx *ctx, const struct nat_entry *entry)
{
	struct remote_endpoint_info *info;

	if (!addr_equal(&ctx->saddr, &entry->saddr))
		return IDENTITY_HOST;
	info = ipcache_lookup(&ctx->saddr);
	return info && info->identity <= IDENTITY_CLUSTER_MAX ? info->identity : IDENTITY_WORLD;
}

/* Translate and send. XDP_PASS: nothing was touched. */
INLINE int xdp_forward(struct xdp_md *xdp, const struct pkt_ctx *ctx, const struct datapath_config *cfg,
		       const struct nat_entry *entry)
{
	struct remote_endpoint_info *remote = ipcache_lookup(&entry->daddr);
	struct bpf_fib_lookup fib;
	bool wrapped = cfg->overlay_ifindex && !(cfg->flags & CONFIG_F_NATIVE_ROUTING) && remote &&
		       is_cluster_pod(remote->identity) && by_overlay(remote);
	long way;

	if (endpoint_by_addr((struct addr *)&entry->daddr))
		return XDP_PASS;
	if (wrapped) {
		if (!addr_is_v4(&remote->tunnel_endpoint) || !addr_is_v4(&cfg->tunnel_address))
			return XDP_PASS;
		way = xdp_route(xdp, ctx, &fib, &cfg->tunnel_address, &remote->tunnel_endpoint,
				ctx->ip_len + sizeof(struct vxlan_header));
	} else {
		way = xdp_route(xdp, ctx, &fib, &entry->saddr, &entry->daddr, ctx->ip_len);
	}
	if (way || (wrapped && bpf_xdp_adjust_head(xdp, -(int)sizeof(struct vxlan_header))))
		return XDP_PASS;
	if (!xdp_translate(xdp, ctx, entry, wrapped ? sizeof(struct vxlan_header) : 0))
		return XDP_ABORTED;
	if (wrapped && !xdp_wrap(xdp, cfg, &remote->tunnel_endpoint, ctx, xdp_identity(ctx, entry)))
		return XDP_ABORTED;
	count_packet(0, 0, ctx->ip_len);
	return xdp_leave(xdp, &fib);
}
