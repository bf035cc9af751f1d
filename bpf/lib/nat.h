/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewriting addresses and ports, checksums included, both families, TCP and UDP; and the packet inside an ICMP
 * error. The kernel's helpers know about partial checksums (offload) and about UDP's "no checksum". */
#pragma once
#include "context.h"
#include "drop_reasons.h"
#include "parse.h"
#include "sctp.h"

enum {
	IPV4_CHECKSUM_OFF = 10,
	IPV4_SADDR_OFF = 12,
	IPV4_DADDR_OFF = 16,
	IPV6_SADDR_OFF = 8,
	IPV6_DADDR_OFF = 24,
	TCP_CHECKSUM_OFF = 16,
	UDP_CHECKSUM_OFF = 6,
	ICMP_CHECKSUM_OFF = 2,
	ICMP_ID_OFF = 4,
};

INLINE int nat_failed(void)
{
	return DROP_ERROR_WRITING_TO_PACKET;
}

/* Bytes of an address on the wire. */
INLINE u32 wire_length(u8 family)
{
	return family == 4 ? 4 : 16;
}

/* What a packet is to become; applied in one place per program, because each copy of this code costs a compile. */
enum nat_flags {
	NAT_SOURCE = 1,
	NAT_DESTINATION = 2,
};

struct nat {
	struct addr saddr;
	struct addr daddr;
	u16 sport; /* network order */
	u16 dport;
	u32 flags;
};

/* Where a protocol has its checksum, behind the start of its header. */
INLINE u32 l4_checksum_off(u8 protocol)
{
	if (protocol == PROTO_TCP)
		return TCP_CHECKSUM_OFF;
	return protocol == PROTO_UDP ? UDP_CHECKSUM_OFF : ICMP_CHECKSUM_OFF;
}

INLINE bool is_icmp(u8 protocol)
{
	return protocol == PROTO_ICMP || protocol == PROTO_ICMPV6;
}

/* A packet's port as translation sees it: the side that pings has the id, the other 0. */
INLINE u16 nat_port(const struct pkt_ctx *ctx, bool source)
{
	if (likely(!is_icmp(ctx->protocol)))
		return source ? ctx->sport : ctx->dport;
	return is_icmp_request(ctx->family, ctx->icmp_type) == source ? ctx->icmp_id : 0;
}

/* Address and port in the L4 header and its checksum. ICMPv4's does not cover addresses; SCTP's neither, and it changes
 * for both ports at once (nat_apply). */
INLINE int nat_end_l4(struct __sk_buff *skb, const struct pkt_ctx *ctx, bool source, struct addr *from, struct addr *to,
		      u16 port)
{
	u32 checksum = ctx->l4_off + l4_checksum_off(ctx->protocol);
	u32 flags = ctx->protocol == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	u16 old_port = nat_port(ctx, source);
	u32 at = ctx->l4_off + (is_icmp(ctx->protocol) ? ICMP_ID_OFF : source ? 0 : sizeof(port));
	/* The v4-mapped prefix is the same on both sides: the difference of 16 bytes is that of 4. */
	s64 diff = bpf_csum_diff(from, sizeof(*from), to, sizeof(*to), 0);

	if (unlikely(ctx->protocol == PROTO_SCTP))
		return 0;
	if (ctx->protocol != PROTO_ICMP &&
	    bpf_l4_csum_replace(skb, checksum, 0, diff, BPF_F_PSEUDO_HDR | flags))
		return nat_failed();
	if (port == old_port)
		return 0;
	if (bpf_l4_csum_replace(skb, checksum, old_port, port, sizeof(port) | flags) ||
	    bpf_skb_store_bytes(skb, at, &port, sizeof(port), 0))
		return nat_failed();
	return 0;
}

/* Replace one end. ctx follows. 0 or a drop reason. */
INLINE int nat_end(struct __sk_buff *skb, struct pkt_ctx *ctx, bool source, struct addr *to, u16 port)
{
	struct addr *from = source ? &ctx->saddr : &ctx->daddr;
	u32 at;

	if (!(ctx->flags & CTX_F_NO_L4)) {
		int reason = nat_end_l4(skb, ctx, source, from, to, port);

		if (reason)
			return reason;
	}
	if (ctx->family == 4) {
		at = L3_OFF + (source ? IPV4_SADDR_OFF : IPV4_DADDR_OFF);
		if (bpf_l3_csum_replace(skb, L3_OFF + IPV4_CHECKSUM_OFF, from->w[3], to->w[3], sizeof(u32)) ||
		    bpf_skb_store_bytes(skb, at, &to->w[3], sizeof(u32), 0))
			return nat_failed();
	} else {
		at = L3_OFF + (source ? IPV6_SADDR_OFF : IPV6_DADDR_OFF);
		if (bpf_skb_store_bytes(skb, at, to, sizeof(*to), 0))
			return nat_failed();
	}
	*from = *to;
	if (is_icmp(ctx->protocol)) {
		if (is_icmp_request(ctx->family, ctx->icmp_type) == source)
			ctx->icmp_id = port;
	} else if (source) {
		ctx->sport = port;
	} else {
		ctx->dport = port;
	}
	return 0;
}

INLINE int nat_apply(struct __sk_buff *skb, struct pkt_ctx *ctx, struct nat *nat)
{
	int i, reason = 0;

	if (unlikely(ctx->protocol == PROTO_SCTP && !(ctx->flags & CTX_F_NO_L4)))
		reason = sctp_ports(skb, ctx, nat->flags & NAT_SOURCE ? nat->sport : ctx->sport,
				    nat->flags & NAT_DESTINATION ? nat->dport : ctx->dport);
#pragma nounroll
	for (i = 0; i < 2; i++) {
		bool source = i == 0;

		if (reason || !(nat->flags & (source ? NAT_SOURCE : NAT_DESTINATION)))
			continue;
		reason = nat_end(skb, ctx, source, source ? &nat->saddr : &nat->daddr,
				 source ? nat->sport : nat->dport);
	}
	return reason;
}

/* One end of the outer header of an ICMP error. ctx follows. */
INLINE int nat_error_outer(struct __sk_buff *skb, struct pkt_ctx *ctx, bool source, struct addr *to)
{
	struct addr *from = source ? &ctx->saddr : &ctx->daddr;
	u32 at;

	if (ctx->family == 4) {
		at = L3_OFF + (source ? IPV4_SADDR_OFF : IPV4_DADDR_OFF);
		if (bpf_l3_csum_replace(skb, L3_OFF + IPV4_CHECKSUM_OFF, from->w[3], to->w[3], sizeof(u32)) ||
		    bpf_skb_store_bytes(skb, at, &to->w[3], sizeof(u32), 0))
			return nat_failed();
	} else {
		s64 diff = bpf_csum_diff(from, sizeof(*to), to, sizeof(*to), 0);

		at = L3_OFF + (source ? IPV6_SADDR_OFF : IPV6_DADDR_OFF);
		if (bpf_l4_csum_replace(skb, ctx->l4_off + ICMP_CHECKSUM_OFF, 0, diff, BPF_F_PSEUDO_HDR) ||
		    bpf_skb_store_bytes(skb, at, to, sizeof(*to), 0))
			return nat_failed();
	}
	*from = *to;
	return 0;
}

/* One end of the packet inside. Its L4 checksum stays: it is a quotation, and often cut short. ctx follows. */
INLINE int nat_error_inner(struct __sk_buff *skb, struct pkt_ctx *ctx, bool source, struct addr *to, u16 port)
{
	struct addr *from = source ? &ctx->inner_saddr : &ctx->inner_daddr;
	u16 *old = source ? &ctx->inner_sport : &ctx->inner_dport;
	u32 checksum = ctx->l4_off + ICMP_CHECKSUM_OFF;
	u32 inner = ctx->inner_l3_off, at;

	if (ctx->family == 4) {
		at = inner + (source ? IPV4_SADDR_OFF : IPV4_DADDR_OFF);
		/* The new address and the inner header's new checksum cancel out in ICMP's checksum. */
		if (bpf_l3_csum_replace(skb, inner + IPV4_CHECKSUM_OFF, from->w[3], to->w[3], sizeof(u32)) ||
		    bpf_skb_store_bytes(skb, at, &to->w[3], sizeof(u32), 0))
			return nat_failed();
	} else {
		s64 diff = bpf_csum_diff(from, sizeof(*to), to, sizeof(*to), 0);

		at = inner + (source ? IPV6_SADDR_OFF : IPV6_DADDR_OFF);
		if (bpf_l4_csum_replace(skb, checksum, 0, diff, 0) ||
		    bpf_skb_store_bytes(skb, at, to, sizeof(*to), 0))
			return nat_failed();
	}
	at = ctx->inner_l4_off + (is_icmp(ctx->inner_protocol) ? ICMP_ID_OFF : source ? 0 : sizeof(port));
	if (port != *old && (bpf_l4_csum_replace(skb, checksum, *old, port, sizeof(port)) ||
			     bpf_skb_store_bytes(skb, at, &port, sizeof(port), 0)))
		return nat_failed();
	*from = *to;
	*old = port;
	return 0;
}

/* An ICMP error that comes back to a client about a packet that it had sent to a Service: inside, put back what the
 * client had written, so that its socket recognises it. */
INLINE int nat_related(struct __sk_buff *skb, struct pkt_ctx *ctx, struct addr *to, u16 port)
{
	int reason = 0;

	if (addr_equal(&ctx->saddr, &ctx->inner_daddr))
		reason = nat_error_outer(skb, ctx, true, to);
	return reason ? reason : nat_error_inner(skb, ctx, false, to, port);
}

/* An ICMP error about a translated connection. `nat` is what a packet of that connection becomes that goes the error's
 * way. The packet inside went the other way: its ends are crossed. A router's address stays what it is. */
INLINE int nat_error(struct __sk_buff *skb, struct pkt_ctx *ctx, struct nat *nat)
{
	int i, reason = 0;

	if (addr_equal(&ctx->saddr, &ctx->inner_daddr))
		reason = nat_error_outer(skb, ctx, true, &nat->saddr);
	if (!reason)
		reason = nat_error_outer(skb, ctx, false, &nat->daddr);
#pragma nounroll
	for (i = 0; i < 2; i++) {
		bool source = i == 0;

		if (!reason)
			reason = nat_error_inner(skb, ctx, source, source ? &nat->daddr : &nat->saddr,
						 source ? nat->dport : nat->sport);
	}
	return reason;
}
