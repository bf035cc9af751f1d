/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* VXLAN between nodes. The network identifier (24 bits) is the source's identity: 1 = the sending node's host. */
#pragma once
#include "deliver.h"
#include "ipcache.h"

/* What an identity is called on the wire: node-local ones (CIDR, FQDN) mean nothing elsewhere. */
INLINE u32 wire_identity(u32 identity)
{
	return identity > IDENTITY_CLUSTER_MAX ? IDENTITY_WORLD : identity;
}

/* Say where the VXLAN device has to send this packet. 0 or a drop reason. */
INLINE int set_tunnel(struct __sk_buff *skb, const struct addr *to, u32 identity)
{
	struct datapath_config *cfg = datapath_config();
	struct bpf_tunnel_key key = {};
	u64 flags = BPF_F_ZERO_CSUM_TX;

	key.tunnel_id = wire_identity(identity);
	key.tunnel_ttl = 64;
	/* The other side knows this node by its address in the table, whatever else it has. */
	if (addr_is_v4(to)) {
		key.remote_ipv4 = bpf_ntohl(to->w[3]);
		if (cfg && addr_is_v4(&cfg->tunnel_address))
			key.local_ipv4 = bpf_ntohl(cfg->tunnel_address.w[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, to, sizeof(key.remote_ipv6));
		if (cfg && !addr_is_v4(&cfg->tunnel_address))
			__builtin_memcpy(key.local_ipv6, &cfg->tunnel_address, sizeof(key.local_ipv6));
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return DROP_NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT;
	return 0;
}

enum {
	OVERLAY6_HEADERS = 70, /* IPv6, UDP, VXLAN, the inner Ethernet header */
	FIB_SKIP_NEIGHBOUR = 4,
};

/* Nobody on the way cuts IPv6: what routers said of the way to the other node is in the routing table, and what does not
 * fit would be lost in silence. Packets that fit everywhere do not ask. 0: it fits; else how much would. */
INLINE u32 too_large_for_underlay6(struct __sk_buff *skb, u32 size, const struct datapath_config *cfg,
				   const struct addr *to)
{
	struct bpf_fib_lookup fib = {};

	if (likely(size + OVERLAY6_HEADERS <= IPV6_LEAST_MTU))
		return 0;
	fib.family = 10; /* AF_INET6 */
	fib.ifindex = skb->ifindex;
	fib.l4_protocol = PROTO_UDP;
	fib.dport = cfg->tunnel_port;
	fib.tot_len = size + OVERLAY6_HEADERS;
	__builtin_memcpy(fib.ipv6_src, &cfg->tunnel_address, sizeof(cfg->tunnel_address));
	__builtin_memcpy(fib.ipv6_dst, to, sizeof(*to));
	if (bpf_fib_lookup(skb, &fib, sizeof(fib), FIB_SKIP_NEIGHBOUR) != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return 0;
	return fib.tot_len - OVERLAY6_HEADERS; /* the kernel has put there what fits */
}

/* The same for a packet as it is, before it gets its tunnel key. 0 or a drop reason; then ctx->fitting is what its sender
 * may be told, or 0: no sender makes smaller packets. */
INLINE int check_underlay6(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct datapath_config *cfg, const struct addr *to)
{
	u32 size = size_on_wire(skb, ctx), room = too_large_for_underlay6(skb, size, cfg, to);

	if (likely(!room))
		return 0;
	if (room < least_mtu(ctx))
		room = size > least_mtu(ctx) ? least_mtu(ctx) : 0;
	ctx->fitting = room;
	return DROP_PACKET_TOO_LARGE;
}

/* Of a pod's packet: 0, or a drop reason, and the pod is told what would fit. */
INLINE int may_leave_by_overlay(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct datapath_config *cfg,
				const struct addr *to)
{
	int reason = unlikely(!addr_is_v4(to)) ? check_underlay6(skb, ctx, cfg, to) : 0;

	if (unlikely(reason && ctx->fitting))
		ctx->flags |= CTX_F_REFUSE;
	return reason;
}

/* From a pod straight onto the overlay. Returns a verdict for `finish`. */
INLINE int encapsulate(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct remote_endpoint_info *remote)
{
	struct datapath_config *cfg = datapath_config();
	int reason;

	if (!cfg || !cfg->overlay_ifindex)
		return -DROP_NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT;
	/* The stack's route leads to the overlay device as well: it cuts the packet, or tells the pod what would fit. */
	if (unlikely(cfg->path_mtu && !fits(skb, ctx, cfg->path_mtu)))
		return TC_ACT_OK;
	reason = may_leave_by_overlay(skb, ctx, cfg, &remote->tunnel_endpoint);
	if (reason)
		return -reason;
	reason = set_tunnel(skb, &remote->tunnel_endpoint, ctx->src_identity);
	if (reason)
		return -reason;
	skb->mark = MARK_ENCAPSULATED;
	return bpf_redirect(cfg->overlay_ifindex, 0);
}

/* Whoever may speak VXLAN to a node can claim any identity: not for pods, neither from here nor inside the overlay. */
INLINE bool speaks_vxlan(const struct pkt_ctx *ctx)
{
	struct datapath_config *cfg = datapath_config();

	return ctx->protocol == PROTO_UDP && cfg && cfg->tunnel_port && ctx->dport == cfg->tunnel_port;
}

/* The sender's identity, and the node that sent; -1 when the packet carries none. */
INLINE int overlay_identity(struct __sk_buff *skb, struct addr *node)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		addr_set_v4(node, bpf_htonl(key.remote_ipv4));
	else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
		__builtin_memcpy(node, key.remote_ipv6, sizeof(*node));
	else
		return -1;
	return key.tunnel_id == IDENTITY_HOST ? IDENTITY_REMOTE_NODE : key.tunnel_id;
}

/* May `node` send a packet with this source? A known pod's come from its own node; others (pods that the table does not
 * have yet, the outside by way of a node) from any node of the cluster. 0 or a drop reason. */
INLINE int check_overlay_sender(struct pkt_ctx *ctx, const struct addr *node)
{
	struct remote_endpoint_info *from = ipcache_lookup(&ctx->saddr);

	if (likely(from && by_overlay(from)))
		return addr_equal(&from->tunnel_endpoint, node) ? 0 : DROP_INVALID_SOURCE_IP;
	if (endpoint_by_addr(&ctx->saddr))
		return DROP_INVALID_SOURCE_IP;
	from = ipcache_lookup(node);
	if (!from || (from->identity != IDENTITY_REMOTE_NODE && from->identity != IDENTITY_KUBE_APISERVER))
		return DROP_UNKNOWN_SENDER;
	return 0;
}
