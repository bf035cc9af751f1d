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
INLINE int set_tunnel(struct __sk_buff *skb, const struct remote_endpoint_info *remote, u32 identity)
{
	struct bpf_tunnel_key key = {};
	u64 flags = BPF_F_ZERO_CSUM_TX;

	key.tunnel_id = wire_identity(identity);
	key.tunnel_ttl = 64;
	if (addr_is_v4(&remote->tunnel_endpoint)) {
		key.remote_ipv4 = bpf_ntohl(remote->tunnel_endpoint.w[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, &remote->tunnel_endpoint, sizeof(key.remote_ipv6));
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return DROP_NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT;
	return 0;
}

/* From a pod straight onto the overlay. Returns a verdict for `finish`. */
INLINE int encapsulate(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct remote_endpoint_info *remote)
{
	struct datapath_config *cfg = datapath_config();
	int reason;

	if (!cfg || !cfg->overlay_ifindex)
		return -DROP_NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT;
	reason = set_tunnel(skb, remote, ctx->src_identity);
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

/* The sender's identity, or -1 when the packet carries none. */
INLINE int overlay_identity(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) &&
	    bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
		return -1;
	return key.tunnel_id == IDENTITY_HOST ? IDENTITY_REMOTE_NODE : key.tunnel_id;
}
