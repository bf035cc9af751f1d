/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewriting addresses and ports, checksums included, both families, TCP and UDP; and the packet inside an ICMP
 * error. The kernel's helpers know about partial checksums (offload) and about UDP's "no checksum". */
#pragma once
#include "context.h"
#include "drop_reasons.h"
#include "parse.h"

enum {
	IPV4_CHECKSUM_OFF = 10,
	IPV4_SADDR_OFF = 12,
	IPV4_DADDR_OFF = 16,
	IPV6_SADDR_OFF = 8,
	IPV6_DADDR_OFF = 24,
	TCP_CHECKSUM_OFF = 16,
	UDP_CHECKSUM_OFF = 6,
	ICMP_CHECKSUM_OFF = 2,
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

/* Replace one end. ctx follows. 0 or a drop reason. */
INLINE int nat_end(struct __sk_buff *skb, struct pkt_ctx *ctx, bool source, struct addr *to, u16 port)
{
	struct addr *from = source ? &ctx->saddr : &ctx->daddr;
	u16 old_port = source ? ctx->sport : ctx->dport;
	u32 checksum = ctx->l4_off + (ctx->protocol == PROTO_TCP ? TCP_CHECKSUM_OFF : UDP_CHECKSUM_OFF);
	u32 flags = ctx->protocol == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	u32 at;

	if (!(ctx->flags & CTX_F_NO_L4)) {
		/* The v4-mapped prefix is the same on both sides: the difference of 16 bytes is that of 4. */
		s64 diff = bpf_csum_diff(from, sizeof(*from), to, sizeof(*to), 0);

		if (bpf_l4_csum_replace(skb, checksum, 0, diff, BPF_F_PSEUDO_HDR | flags))
			return nat_failed();
		if (port != old_port) {
			at = ctx->l4_off + (source ? 0 : sizeof(port));
			if (bpf_l4_csum_replace(skb, checksum, old_port, port, sizeof(port) | flags) ||
			    bpf_skb_store_bytes(skb, at, &port, sizeof(port), 0))
				return nat_failed();
		}
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
	if (source)
		ctx->sport = port;
	else
		ctx->dport = port;
	return 0;
}

INLINE int nat_apply(struct __sk_buff *skb, struct pkt_ctx *ctx, struct nat *nat)
{
	int i, reason = 0;

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

/* The outer source of an ICMP error. */
INLINE int nat_icmp_source(struct __sk_buff *skb, struct pkt_ctx *ctx, struct addr *to)
{
	s64 diff;

	if (ctx->family == 4) {
		if (bpf_l3_csum_replace(skb, L3_OFF + IPV4_CHECKSUM_OFF, ctx->saddr.w[3], to->w[3], sizeof(u32)) ||
		    bpf_skb_store_bytes(skb, L3_OFF + IPV4_SADDR_OFF, &to->w[3], sizeof(u32), 0))
			return nat_failed();
	} else {
		diff = bpf_csum_diff(&ctx->saddr, sizeof(*to), to, sizeof(*to), 0);
		if (bpf_l4_csum_replace(skb, ctx->l4_off + ICMP_CHECKSUM_OFF, 0, diff, BPF_F_PSEUDO_HDR) ||
		    bpf_skb_store_bytes(skb, L3_OFF + IPV6_SADDR_OFF, to, sizeof(*to), 0))
			return nat_failed();
	}
	ctx->saddr = *to;
	return 0;
}

/* An ICMP error that comes back to a client about a packet that it had sent to a Service: inside, put back what the
 * client had written, so that its socket recognises it. */
INLINE int nat_related(struct __sk_buff *skb, struct pkt_ctx *ctx, struct addr *to, u16 port)
{
	u32 checksum = ctx->l4_off + ICMP_CHECKSUM_OFF;
	u32 inner = ctx->inner_l3_off;
	int reason = 0;

	if (addr_equal(&ctx->saddr, &ctx->inner_daddr))
		reason = nat_icmp_source(skb, ctx, to);
	if (reason)
		return reason;
	if (ctx->family == 4) {
		/* The new address and the inner header's new checksum cancel out in ICMP's checksum. */
		if (bpf_l3_csum_replace(skb, inner + IPV4_CHECKSUM_OFF, ctx->inner_daddr.w[3], to->w[3], sizeof(u32)) ||
		    bpf_skb_store_bytes(skb, inner + IPV4_DADDR_OFF, &to->w[3], sizeof(u32), 0))
			return nat_failed();
	} else {
		s64 diff = bpf_csum_diff(&ctx->inner_daddr, sizeof(*to), to, sizeof(*to), 0);

		if (bpf_l4_csum_replace(skb, checksum, 0, diff, 0) ||
		    bpf_skb_store_bytes(skb, inner + IPV6_DADDR_OFF, to, sizeof(*to), 0))
			return nat_failed();
	}
	if (port != ctx->inner_dport &&
	    (bpf_l4_csum_replace(skb, checksum, ctx->inner_dport, port, sizeof(port)) ||
	     bpf_skb_store_bytes(skb, ctx->inner_l4_off + sizeof(port), &port, sizeof(port), 0)))
		return nat_failed();
	return 0;
}
