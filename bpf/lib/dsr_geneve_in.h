/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* DSR's Geneve at the backend's node: who may send it, what it says, and the packet out of it. It is ours and nobody
 * else's: what is wrong with it is dropped and told, never handed to the node's stack. */
#pragma once
#include "dsr_geneve.h"
#include "hostfw.h"

/* Kernels since 6.3; only where a packet of one family comes in one of the other. */
enum { ADJ_ROOM_DECAP_L3_IPV4 = 1 << 7, ADJ_ROOM_DECAP_L3_IPV6 = 1 << 8 };

/* Is the packet DSR's, for this node? */
INLINE bool is_dsr_geneve(const struct pkt_ctx *ctx, const struct datapath_config *cfg)
{
	struct remote_endpoint_info *to;

	if (likely(!cfg->dsr_port || ctx->protocol != PROTO_UDP || ctx->dport != cfg->dsr_port))
		return false;
	to = ipcache_lookup(&ctx->daddr);
	return to && to->identity == IDENTITY_HOST;
}

/* Only other nodes of the cluster may say in whose name a pod answers. */
INLINE bool is_other_node(const struct addr *address)
{
	struct remote_endpoint_info *from = ipcache_lookup(address);

	return from && (from->identity == IDENTITY_REMOTE_NODE || from->identity == IDENTITY_KUBE_APISERVER);
}

/* The outer packet, up to Geneve's header, which it reads. 0 or a drop reason. */
INLINE int geneve_check(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct geneve_header *geneve)
{
	struct l4_header udp;

	if (ctx->flags & CTX_F_FRAGMENT)
		return DROP_IP_FRAGMENTATION_NOT_SUPPORTED;
	if (!is_other_node(&ctx->saddr))
		return DROP_UNKNOWN_SENDER;
	if (!is_plain_header(ctx) || skb->gso_size || bpf_skb_load_bytes(skb, ctx->l4_off, &udp, sizeof(udp)) ||
	    bpf_ntohs(udp.length) != ctx->payload_len + UDP_LENGTH ||
	    bpf_skb_load_bytes(skb, ctx->payload_off, geneve, sizeof(*geneve)))
		return DROP_INVALID_PACKET_DROPPED;
	if ((geneve->version_words & GENEVE_VERSION) || (geneve->flags & GENEVE_CONTROL) ||
	    geneve->protocol != bpf_htons(GENEVE_ETHERNET))
		return DROP_INVALID_PACKET_DROPPED;
	return 0;
}

/* The option at `at` is DSR's: what the client addressed is in ctx->service_*. Returns its family, 0: it is malformed. */
INLINE u8 dsr_option_read(struct __sk_buff *skb, struct pkt_ctx *ctx, u32 at, u32 words)
{
	u32 address = 0;
	int error;

	at += sizeof(struct geneve_option);
	if (words == (sizeof(u32) + 4) / 4) {
		error = bpf_skb_load_bytes(skb, at, &address, sizeof(address));
		addr_set_v4(&ctx->service_address, address);
		at += sizeof(u32);
	} else if (words == (sizeof(struct addr) + 4) / 4) {
		error = bpf_skb_load_bytes(skb, at, &ctx->service_address, sizeof(struct addr));
		at += sizeof(struct addr);
	} else {
		return 0;
	}
	if (error || bpf_skb_load_bytes(skb, at, &ctx->service_port, sizeof(ctx->service_port)))
		return 0;
	return words == (sizeof(u32) + 4) / 4 ? 4 : 6;
}

/* RFC 8926, 3.5. Exactly one option of DSR's; unknown ones are skipped unless they are critical. Returns the family of
 * the address, or a negative drop reason. */
INLINE int geneve_options(struct __sk_buff *skb, struct pkt_ctx *ctx, u32 at, u32 end)
{
	struct geneve_option option;
	u8 family = 0;
	u32 i, words;

#pragma nounroll
	for (i = 0; i < GENEVE_OPTIONS_READ; i++) {
		if (at >= end)
			break;
		if (bpf_skb_load_bytes(skb, at, &option, sizeof(option)))
			return -DROP_INVALID_PACKET_DROPPED;
		words = option.words & 31;
		if (option.class == bpf_htons(DSR_GENEVE_CLASS) && option.type == DSR_GENEVE_TYPE) {
			if (family)
				return -DROP_INVALID_GENEVE_OPTION;
			family = dsr_option_read(skb, ctx, at, words);
			if (!family)
				return -DROP_INVALID_GENEVE_OPTION;
		} else if (option.type & GENEVE_OPTION_CRITICAL) {
			return -DROP_INVALID_GENEVE_OPTION;
		}
		at += sizeof(option) + words * 4;
	}
	return at == end && family ? family : -DROP_INVALID_GENEVE_OPTION;
}

/* Take everything off that is around the inner packet, `length` bytes behind the link header. 0 or a drop reason. */
INLINE int dsr_strip(struct __sk_buff *skb, const struct pkt_ctx *ctx, u32 length, u8 family)
{
	u16 protocol = bpf_htons(family == 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6);
	u64 flags = 0;

	if (family != ctx->family)
		flags = family == 4 ? ADJ_ROOM_DECAP_L3_IPV4 : ADJ_ROOM_DECAP_L3_IPV6;
	if (bpf_skb_adjust_room(skb, -(s32)length, BPF_ADJ_ROOM_MAC, flags))
		return DROP_INVALID_PACKET_DROPPED; /* too little is in it */
	return bpf_skb_store_bytes(skb, sizeof(struct eth_header) - sizeof(protocol), &protocol, sizeof(protocol), 0) ?
		       nat_failed() : 0;
}

/* By the name that the overlay has for the client, where the rest of the connection comes by it. */
INLINE u32 dsr_client(const struct pkt_ctx *ctx, const struct geneve_header *geneve)
{
	u32 identity = bpf_ntohl(geneve->vni) >> 8;

	if (routes_natively(datapath_config()))
		return identity_of(&ctx->saddr);
	return identity <= IDENTITY_WORLD || is_cluster_pod(identity) ? outside_identity(&ctx->saddr) : identity;
}

/* The packet out of Geneve: ctx describes it and its sender afterwards, and in ctx->service_* is what the client
 * addressed. 0 or a drop reason. */
INLINE int dsr_unwrap(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	u32 at = ctx->payload_off + sizeof(struct geneve_header), end;
	struct geneve_header geneve = {};
	int reason = geneve_check(skb, ctx, &geneve), family;
	struct eth_header frame;

	if (reason)
		return reason;
	end = at + (geneve.version_words & (u8)~GENEVE_VERSION) * 4;
	/* All of it within the outer packet, whatever padding follows that. */
	if (end + sizeof(frame) + ip_length(4) > L3_OFF + ctx->ip_len)
		return DROP_INVALID_PACKET_DROPPED;
	family = geneve_options(skb, ctx, at, end);
	if (family < 0)
		return -family;
	if (bpf_skb_load_bytes(skb, end, &frame, sizeof(frame)))
		return DROP_INVALID_PACKET_DROPPED;
	if (frame.protocol != bpf_htons(family == 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6))
		return DROP_UNSUPPORTED_L3_PROTOCOL;
	reason = dsr_strip(skb, ctx, end + sizeof(frame) - L3_OFF, family);
	if (reason)
		return reason;
	reason = parse_packet(skb, ctx);
	if (reason)
		return reason == PARSE_LINK_SCOPE ? DROP_INVALID_PACKET_DROPPED : reason;
	if (ctx->protocol != PROTO_TCP && ctx->protocol != PROTO_UDP && ctx->protocol != PROTO_SCTP)
		return DROP_UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP;
	/* Clients are outside: nobody of the cluster speaks with another's address. */
	ctx->src_identity = dsr_client(ctx, &geneve);
	return is_inside(&ctx->saddr) || endpoint_by_addr(&ctx->saddr) ? DROP_INVALID_SOURCE_IP : 0;
}
