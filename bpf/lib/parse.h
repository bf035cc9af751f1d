/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packet -> pkt_ctx. Every length is checked against the packet; what cannot be understood is dropped with a
 * reason. Headers are copied into the context at once, no packet pointer outlives its helper. */
#pragma once
#include "context.h"
#include "drop_reasons.h"
#include "fragments.h"
#include "wire.h"

/* Not a drop reason: link-scope chatter (ARP, neighbour discovery, MLD), which belongs to the link and to nobody's
 * policy. Never forwarded; counted, but no event. */
#define PARSE_LINK_SCOPE (-1)

/* `length` bytes at `offset`, pulled into the linear part where they are not there yet; NULL: the packet is too short. */
INLINE void *packet_bytes(struct __sk_buff *skb, u32 offset, u32 length)
{
	void *data = (void *)(long)skb->data;

	if (likely(data + offset + length <= (void *)(long)skb->data_end))
		return data + offset;
	if (bpf_skb_pull_data(skb, offset + length))
		return NULL;
	data = (void *)(long)skb->data;
	if (data + offset + length > (void *)(long)skb->data_end)
		return NULL;
	return data + offset;
}

/* The IPv6 headers between the fixed one and L4. Returns the L4 protocol in ctx and its offset, or a drop reason. */
INLINE int skip_ipv6_extensions(struct __sk_buff *skb, u32 *offset, u8 *protocol, u32 *fragment_id, u32 *flags)
{
	u32 off = *offset;
	u8 next = *protocol;
	int i;

#pragma unroll
	for (i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		struct ipv6_extension *ext;

		if (next != PROTO_HOPOPTS && next != PROTO_ROUTING && next != PROTO_DSTOPTS && next != PROTO_FRAGMENT)
			break;
		ext = packet_bytes(skb, off, sizeof(*ext));
		if (!ext)
			return DROP_INVALID_PACKET_DROPPED;
		if (next == PROTO_FRAGMENT) {
			*flags |= CTX_F_FRAGMENT;
			*fragment_id = ext->fragment_id;
			if (ext->fragment_offset & bpf_htons(0xfff8))
				*flags |= CTX_F_NO_L4;
			off += 8;
		} else {
			off += 8 + ext->length * 8;
		}
		next = ext->next_header;
		if (off > 1024)
			return DROP_INVALID_PACKET_DROPPED;
	}
	if (next == PROTO_HOPOPTS || next == PROTO_ROUTING || next == PROTO_DSTOPTS || next == PROTO_FRAGMENT)
		return DROP_INVALID_PACKET_DROPPED;
	*offset = off;
	*protocol = next;
	return 0;
}

/* ICMP error: what it is about. A packet cut too short to tell is simply related to nothing. */
INLINE void parse_inner(struct __sk_buff *skb, struct pkt_ctx *ctx, u32 offset)
{
	u32 fragment_id = 0, flags = 0;
	struct l4_header *l4;
	u8 type;

	if (offset > 1200)
		return;
	ctx->inner_l3_off = offset;
	if (ctx->family == 4) {
		struct ipv4_header *ip = packet_bytes(skb, offset, sizeof(*ip));

		if (!ip || (ip->version_ihl >> 4) != 4)
			return;
		addr_set_v4(&ctx->inner_saddr, ip->saddr);
		addr_set_v4(&ctx->inner_daddr, ip->daddr);
		ctx->inner_protocol = ip->protocol;
		if (ip->fragment & bpf_htons(0x1fff))
			return; /* what is behind the header is no header */
		offset += (ip->version_ihl & 15) * 4;
	} else {
		struct ipv6_header *ip = packet_bytes(skb, offset, sizeof(*ip));

		if (!ip)
			return;
		ctx->inner_saddr = ip->saddr;
		ctx->inner_daddr = ip->daddr;
		type = ip->next_header;
		offset += sizeof(*ip);
		/* Else the compiler keeps addresses of skb's fields, which the verifier does not allow. */
		asm volatile("" : "+r"(skb));
		if (skip_ipv6_extensions(skb, &offset, &type, &fragment_id, &flags) || (flags & CTX_F_NO_L4))
			return;
		ctx->inner_protocol = type;
	}
	l4 = packet_bytes(skb, offset, sizeof(*l4));
	if (!l4)
		return;
	ctx->inner_l4_off = offset;
	ctx->inner_sport = l4->sport;
	ctx->inner_dport = l4->dport;
	if (ctx->inner_protocol == ctx->protocol) {
		type = *(u8 *)l4;
		if (!is_icmp_echo(ctx->family, type))
			return;
		ctx->inner_sport = is_icmp_request(ctx->family, type) ? l4->length : 0;
		ctx->inner_dport = is_icmp_request(ctx->family, type) ? 0 : l4->length;
	}
	ctx->flags |= CTX_F_ICMP_ERROR;
}

INLINE int parse_icmp(struct __sk_buff *skb, struct pkt_ctx *ctx, u32 off)
{
	struct l4_header *l4 = packet_bytes(skb, off, sizeof(*l4));

	if (!l4)
		return DROP_CT_TRUNCATED_OR_INVALID_HEADER;
	ctx->icmp_type = ((u8 *)l4)[0];
	ctx->icmp_code = ((u8 *)l4)[1];
	ctx->icmp_id = l4->length;
	ctx->sport = bpf_htons(ctx->icmp_type);
	ctx->dport = bpf_htons(ctx->icmp_code);
	if (is_icmp_error(ctx->family, ctx->icmp_type))
		parse_inner(skb, ctx, off + 8);
	return 0;
}

INLINE int parse_tcp(struct __sk_buff *skb, struct pkt_ctx *ctx, u32 off)
{
	struct tcp_header *tcp = packet_bytes(skb, off, sizeof(*tcp));
	u32 length;

	if (!tcp)
		return DROP_CT_TRUNCATED_OR_INVALID_HEADER;
	length = (tcp->data_offset >> 4) * 4;
	if (length < sizeof(*tcp) || off + length > ctx->ip_len + L3_OFF)
		return DROP_CT_TRUNCATED_OR_INVALID_HEADER;
	ctx->sport = tcp->sport;
	ctx->dport = tcp->dport;
	ctx->tcp_seq = bpf_ntohl(tcp->seq);
	ctx->tcp_ack = bpf_ntohl(tcp->ack);
	ctx->tcp_flags = tcp->flags;
	ctx->payload_off = off + length;
	ctx->payload_len = ctx->ip_len + L3_OFF - ctx->payload_off;
	if ((tcp->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		ctx->flags |= CTX_F_SYN;
	return 0;
}

INLINE int parse_datagram(struct __sk_buff *skb, struct pkt_ctx *ctx, u32 off)
{
	struct l4_header *l4 = packet_bytes(skb, off, sizeof(*l4));

	if (!l4 || off + 8 > ctx->ip_len + L3_OFF)
		return DROP_CT_TRUNCATED_OR_INVALID_HEADER;
	ctx->sport = l4->sport;
	ctx->dport = l4->dport;
	ctx->payload_off = off + 8;
	ctx->payload_len = ctx->ip_len + L3_OFF - ctx->payload_off;
	/* Behind SCTP's header: the first chunk's type. INIT is what SYN is to TCP. */
	if (unlikely(ctx->protocol == PROTO_SCTP)) {
		u8 *chunk = packet_bytes(skb, off + 12, 1);

		if (chunk && *chunk == SCTP_CHUNK_INIT)
			ctx->flags |= CTX_F_SYN;
	}
	return 0;
}

INLINE int parse_l4(struct __sk_buff *skb, struct pkt_ctx *ctx, u32 off, u32 fragment_id)
{
	int reason = 0;

	ctx->l4_off = off;
	ctx->payload_off = off;
	ctx->payload_len = 0;
	ctx->sport = 0;
	ctx->dport = 0;
	ctx->tcp_flags = 0;
	if (unlikely(ctx->flags & CTX_F_NO_L4)) {
		if (ctx->protocol == (ctx->family == 4 ? PROTO_ICMP : PROTO_ICMPV6))
			return DROP_IP_FRAGMENTATION_NOT_SUPPORTED;
		return track_fragment(ctx, fragment_id);
	}
	if (ctx->protocol == PROTO_TCP)
		reason = parse_tcp(skb, ctx, off);
	else if (ctx->protocol == PROTO_UDP || ctx->protocol == PROTO_SCTP)
		reason = parse_datagram(skb, ctx, off);
	else if (ctx->protocol == (ctx->family == 4 ? PROTO_ICMP : PROTO_ICMPV6))
		reason = parse_icmp(skb, ctx, off);
	else
		reason = DROP_CT_UNKNOWN_L4_PROTOCOL;
	if (unlikely(ctx->flags & CTX_F_FRAGMENT) && !reason)
		return track_fragment(ctx, fragment_id);
	return reason;
}

INLINE int parse_ipv4(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct ipv4_header *ip = packet_bytes(skb, L3_OFF, sizeof(*ip));
	u32 header, id;

	if (!ip || (ip->version_ihl >> 4) != 4)
		return DROP_INVALID_PACKET_DROPPED;
	header = (ip->version_ihl & 15) * 4;
	ctx->family = 4;
	ctx->ip_len = bpf_ntohs(ip->total_length);
	if (!ctx->ip_len) /* a super-packet of more than 64 KiB */
		ctx->ip_len = skb->len - L3_OFF;
	if (header < sizeof(*ip) || ctx->ip_len < header || ctx->ip_len + L3_OFF > skb->len)
		return DROP_INVALID_PACKET_DROPPED;
	addr_set_v4(&ctx->saddr, ip->saddr);
	addr_set_v4(&ctx->daddr, ip->daddr);
	ctx->protocol = ip->protocol;
	ctx->ttl = ip->ttl;
	id = ip->id;
	/* 224.0.0.0/24 never leaves its link. */
	if (unlikely((ip->daddr & bpf_htonl(0xffffff00)) == bpf_htonl(0xe0000000)))
		return PARSE_LINK_SCOPE;
	if (unlikely(ip->fragment & bpf_htons(0x3fff))) {
		ctx->flags |= CTX_F_FRAGMENT;
		if (ip->fragment & bpf_htons(0x1fff))
			ctx->flags |= CTX_F_NO_L4;
	}
	return parse_l4(skb, ctx, L3_OFF + header, id);
}

INLINE int parse_ipv6(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct ipv6_header *ip = packet_bytes(skb, L3_OFF, sizeof(*ip));
	u32 off = L3_OFF + sizeof(*ip), id = 0, flags = 0;
	u8 protocol;
	int reason;

	if (!ip)
		return DROP_INVALID_PACKET_DROPPED;
	ctx->family = 6;
	ctx->ip_len = bpf_ntohs(ip->payload_length) + sizeof(*ip);
	if (ctx->ip_len == sizeof(*ip))
		ctx->ip_len = skb->len - L3_OFF;
	if (ctx->ip_len + L3_OFF > skb->len)
		return DROP_INVALID_PACKET_DROPPED;
	ctx->saddr = ip->saddr;
	ctx->daddr = ip->daddr;
	ctx->ttl = ip->hop_limit;
	protocol = ip->next_header;
	/* Multicast, link-local, unspecified: the link's own business. */
	if (((u8 *)&ctx->daddr)[0] == 0xff || (ctx->daddr.w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) ||
	    (ctx->saddr.w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) || addr_is_zero(&ctx->saddr))
		return PARSE_LINK_SCOPE;
	/* v4-mapped addresses never travel; accepting them would let one family pose as the other. */
	if (addr_is_v4(&ctx->saddr) || addr_is_v4(&ctx->daddr))
		return DROP_INVALID_SOURCE_IP;
	reason = skip_ipv6_extensions(skb, &off, &protocol, &id, &flags);
	if (reason)
		return reason;
	ctx->protocol = protocol;
	ctx->flags |= flags;
	return parse_l4(skb, ctx, off, id);
}

/* 0, a drop reason, or PARSE_LINK_SCOPE. */
INLINE int parse_packet(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	ctx->flags = 0;
	ctx->ct_state = 0;
	ctx->match_type = 0;
	ctx->rule_id = 0;
	ctx->l7_ruleset = 0;
	ctx->service_id = 0;
	ctx->policy_revision = 0;
	ctx->src_identity = 0;
	ctx->dst_identity = 0;
	ctx->src_endpoint = 0;
	ctx->dst_endpoint = 0;
	ctx->ip_len = skb->len - L3_OFF;
	ctx->now_ns = bpf_ktime_get_coarse_ns();
	ctx->precise_ns = 0;
	ctx->fitting = 0;
	ctx->family = 0;
	/* Of a packet that is refused before its ports are read, the record shall not tell another's. */
	ctx->sport = 0;
	ctx->dport = 0;
	ctx->protocol = 0;
	ctx->tcp_flags = 0;
	if (unlikely(skb->vlan_present))
		return DROP_UNSUPPORTED_L3_PROTOCOL;
	if (likely(skb->protocol == bpf_htons(ETHERTYPE_IPV4)))
		return parse_ipv4(skb, ctx);
	if (skb->protocol == bpf_htons(ETHERTYPE_IPV6))
		return parse_ipv6(skb, ctx);
	if (skb->protocol == bpf_htons(ETHERTYPE_ARP))
		return PARSE_LINK_SCOPE;
	return DROP_UNSUPPORTED_L3_PROTOCOL;
}
