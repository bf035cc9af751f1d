/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Telling a sender at once that nobody will answer, instead of letting it wait: a TCP reset, or "port unreachable" for
 * all else. The packet itself becomes the answer and goes back the way it came; its drop has been reported. */
#pragma once
#include "context.h"
#include "deliver.h"
#include "drop_reasons.h"
#include "l3_header.h"
#include "nat.h"
#include "parse.h"
#include "tailcall.h"

enum {
	ICMP_PORT_UNREACHABLE = 3,
	ICMPV6_PORT_UNREACHABLE = 4,
	ICMP_FRAGMENTATION_NEEDED = 4,
	ICMPV6_TOO_BIG = 2,
	IPV4_LENGTH = 20,
	IPV6_LENGTH = 40,
	TCP_LENGTH = 20,
	ICMP_LENGTH = 8,
	QUOTED_L4 = 8, /* of the refused packet: ports are all that a socket is found by */
};

struct icmp_header {
	u8 type;
	u8 code;
	u16 checksum;
	u32 unused;
};

/* The sum over addresses, length and protocol. The mapped prefix of IPv4 is not on the wire. */
INLINE u64 pseudo_sum(const struct pkt_ctx *ctx, u32 length, u8 protocol)
{
	u32 tail[2] = { bpf_htonl(length), bpf_htonl(protocol) };
	u64 sum = bpf_csum_diff(NULL, 0, (void *)tail, sizeof(tail), 0);

	if (ctx->family == 4) {
		sum = bpf_csum_diff(NULL, 0, (void *)&ctx->saddr.w[3], 4, sum);
		return bpf_csum_diff(NULL, 0, (void *)&ctx->daddr.w[3], 4, sum);
	}
	sum = bpf_csum_diff(NULL, 0, (void *)&ctx->saddr, 16, sum);
	return bpf_csum_diff(NULL, 0, (void *)&ctx->daddr, 16, sum);
}

/* Link and network header of the answer, `length` bytes behind them. Returns where they end, or 0. */
INLINE u32 refuse_headers(struct __sk_buff *skb, const struct pkt_ctx *ctx, u8 protocol, u32 length)
{
	struct eth_header *eth = packet_bytes(skb, 0, L3_OFF + IPV6_LENGTH);
	u8 mac[6];

	if (!eth)
		return 0;
	__builtin_memcpy(mac, eth->dst, 6);
	__builtin_memcpy(eth->dst, eth->src, 6);
	__builtin_memcpy(eth->src, mac, 6);
	return L3_OFF + l3_header((void *)eth + L3_OFF, ctx, &ctx->daddr, &ctx->saddr, protocol, length);
}

/* RFC 9293, 3.10.7.1: what answers a segment that no connection takes. */
INLINE int refuse_tcp(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	u32 l3 = ctx->family == 4 ? IPV4_LENGTH : IPV6_LENGTH, at;
	u32 end = ctx->tcp_seq + ctx->payload_len + !!(ctx->tcp_flags & TCP_SYN) + !!(ctx->tcp_flags & TCP_FIN);
	struct tcp_header tcp = { .sport = ctx->dport, .dport = ctx->sport, .data_offset = 5 << 4, .flags = TCP_RST };

	if (ctx->tcp_flags & TCP_RST)
		return DROP_SERVICE_BACKEND_NOT_FOUND; /* never an answer to a reset */
	if (ctx->tcp_flags & TCP_ACK) {
		tcp.seq = bpf_htonl(ctx->tcp_ack);
	} else {
		tcp.flags |= TCP_ACK;
		tcp.ack = bpf_htonl(end);
	}
	tcp.checksum = checksum_fold(
		bpf_csum_diff(NULL, 0, (void *)&tcp, sizeof(tcp), pseudo_sum(ctx, TCP_LENGTH, PROTO_TCP)));
	/* IPv4 with little payload may be shorter than the headers are looked at with. */
	if (bpf_skb_change_tail(skb, L3_OFF + l3 + TCP_LENGTH, 0))
		return nat_failed();
	at = refuse_headers(skb, ctx, PROTO_TCP, TCP_LENGTH);
	if (!at || bpf_skb_store_bytes(skb, at, &tcp, sizeof(tcp), BPF_F_INVALIDATE_HASH))
		return nat_failed();
	return 0;
}

/* RFC 1122, 4.1.3.1 and RFC 4443, 3.1. The refused packet's header and ports are quoted. */
INLINE int refuse_icmp(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	bool v4 = ctx->family == 4;
	u32 l3 = v4 ? IPV4_LENGTH : IPV6_LENGTH, length = ICMP_LENGTH + l3 + QUOTED_L4, at;
	u8 protocol = v4 ? PROTO_ICMP : PROTO_ICMPV6;
	struct icmp_header icmp = {};
	u64 sum = 0;
	void *quoted;

	/* Behind options or extensions the ports would not be in the quotation. */
	if (ctx->l4_off != L3_OFF + l3 || (ctx->flags & CTX_F_NO_L4))
		return DROP_SERVICE_BACKEND_NOT_FOUND;
	if (bpf_skb_change_tail(skb, L3_OFF + l3 + QUOTED_L4, 0) ||
	    bpf_skb_adjust_room(skb, l3 + ICMP_LENGTH, BPF_ADJ_ROOM_MAC, 0))
		return nat_failed();
	at = refuse_headers(skb, ctx, protocol, length);
	if (!at)
		return nat_failed();
	icmp.type = v4 ? ICMP_UNREACHABLE : ICMPV6_UNREACHABLE;
	icmp.code = v4 ? ICMP_PORT_UNREACHABLE : ICMPV6_PORT_UNREACHABLE;
	sum = bpf_csum_diff(NULL, 0, (void *)&icmp, sizeof(icmp), v4 ? 0 : pseudo_sum(ctx, length, protocol));
	if (v4) {
		quoted = packet_bytes(skb, L3_OFF + IPV4_LENGTH + ICMP_LENGTH, IPV4_LENGTH + QUOTED_L4);
		if (!quoted)
			return nat_failed();
		sum = bpf_csum_diff(NULL, 0, quoted, IPV4_LENGTH + QUOTED_L4, sum);
	} else {
		quoted = packet_bytes(skb, L3_OFF + IPV6_LENGTH + ICMP_LENGTH, IPV6_LENGTH + QUOTED_L4);
		if (!quoted)
			return nat_failed();
		sum = bpf_csum_diff(NULL, 0, quoted, IPV6_LENGTH + QUOTED_L4, sum);
	}
	icmp.checksum = checksum_fold(sum);
	return bpf_skb_store_bytes(skb, at, &icmp, sizeof(icmp), BPF_F_INVALIDATE_HASH) ? nat_failed() : 0;
}

/* The packet that ctx describes, unchanged so far, becomes its own refusal. 0 or why it cannot. */
INLINE int refuse_packet(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	if (ctx->protocol == PROTO_TCP && !(ctx->flags & CTX_F_NO_L4))
		return refuse_tcp(skb, ctx);
	return refuse_icmp(skb, ctx);
}

/* As `finish`; the sender of what is refused is told. */
INLINE int finish_or_refuse(struct __sk_buff *skb, struct pkt_ctx *ctx, int verdict)
{
	verdict = finish(skb, ctx, verdict);
	if (unlikely(verdict == TC_ACT_SHOT && (ctx->flags & CTX_F_REFUSE)))
		tailcalls.call(skb, ctx->fitting ? TAIL_TOO_LARGE : TAIL_REFUSE);
	return verdict;
}
