/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets that do not fit into their way: how large a packet is there, who may be told, and the answer itself
 * ("fragmentation needed", RFC 1191, 4; "packet too big", RFC 4443, 3.2). */
#pragma once
#include "context.h"
#include "parse.h"
#include "refuse.h"

enum {
	QUOTED_BLOCK = 32,
	QUOTED_BLOCKS4 = 17, /* the answer: 572 of the 576 bytes that every host takes (RFC 1812, 4.3.2.3) */
	QUOTED_BLOCKS6 = 38, /* 1264 of the 1280 that every link takes (RFC 4443, 2.4) */
	TO_ALL = 1, /* skb->pkt_type */
	TO_GROUP = 2,
	ICMP_SOURCE_QUENCH = 4,
	ICMP_REDIRECT = 5,
	ICMPV6_INFORMATIONAL = 128, /* from here on no errors */
};

/* May nobody on the way cut the packet? */
INLINE bool is_whole(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	struct ipv4_header *ip;

	if (ctx->family != 4)
		return true;
	ip = packet_bytes(skb, L3_OFF, sizeof(*ip));
	return !ip || (ip->fragment & bpf_htons(0x4000));
}

INLINE bool is_unicast(const struct addr *address)
{
	u32 first = bpf_ntohl(address->w[addr_is_v4(address) ? 3 : 0]) >> 24;

	if (!addr_is_v4(address))
		return first != 0xff && !addr_is_zero(address);
	return first && first != 127 && first < 224;
}

/* RFC 1122, 3.2.2 and RFC 4443, 2.4 (e): no answer to an error, to many, or to what does not say whom it belongs to. */
INLINE bool may_be_told(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	if ((ctx->flags & CTX_F_NO_L4) || skb->pkt_type == TO_ALL || skb->pkt_type == TO_GROUP ||
	    !is_unicast(&ctx->saddr) || !is_unicast(&ctx->daddr))
		return false;
	if (ctx->protocol == PROTO_ICMPV6)
		return ctx->icmp_type >= ICMPV6_INFORMATIONAL;
	return ctx->protocol != PROTO_ICMP || !(is_icmp_error(4, ctx->icmp_type) || ctx->icmp_type == ICMP_REDIRECT ||
						ctx->icmp_type == ICMP_SOURCE_QUENCH);
}

/* The sum over what is quoted: the packet's first `blocks` blocks. False: they are not there. */
INLINE bool quotation_sum(struct __sk_buff *skb, u32 blocks, u64 *sum)
{
	u32 i;

	bpf_skb_pull_data(skb, L3_OFF + blocks * QUOTED_BLOCK);
#pragma nounroll
	for (i = 0; i < QUOTED_BLOCKS6; i++) {
		void *at = (void *)(long)skb->data + L3_OFF + i * QUOTED_BLOCK;

		if (i >= blocks)
			break;
		if (at + QUOTED_BLOCK > (void *)(long)skb->data_end)
			return false;
		*sum = bpf_csum_diff(NULL, 0, at, QUOTED_BLOCK, *sum);
	}
	return true;
}

/* The packet that ctx describes, as its sender wrote it, becomes the answer to itself: ctx->fitting bytes would fit. It
 * comes from where the packet was sent to. 0 or a drop reason. */
INLINE int too_large_answer(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	bool v4 = ctx->family == 4;
	u32 l3 = v4 ? IPV4_LENGTH : IPV6_LENGTH, blocks = v4 ? QUOTED_BLOCKS4 : QUOTED_BLOCKS6, length, at;
	u8 protocol = v4 ? PROTO_ICMP : PROTO_ICMPV6;
	struct icmp_header icmp = {
		.type = v4 ? ICMP_UNREACHABLE : ICMPV6_TOO_BIG,
		.code = v4 ? ICMP_FRAGMENTATION_NEEDED : 0,
		.unused = bpf_htonl(ctx->fitting),
	};
	u64 sum;

	if (blocks > ctx->ip_len / QUOTED_BLOCK)
		blocks = ctx->ip_len / QUOTED_BLOCK;
	length = ICMP_LENGTH + blocks * QUOTED_BLOCK;
	/* Ports are what the sender finds its socket by. */
	if (ctx->l4_off + QUOTED_L4 > L3_OFF + blocks * QUOTED_BLOCK)
		return DROP_PACKET_TOO_LARGE;
	sum = bpf_csum_diff(NULL, 0, (void *)&icmp, sizeof(icmp), v4 ? 0 : pseudo_sum(ctx, length, protocol));
	if (!quotation_sum(skb, blocks, &sum))
		return nat_failed();
	icmp.checksum = checksum_fold(sum);
	if (bpf_skb_change_tail(skb, L3_OFF + blocks * QUOTED_BLOCK, 0) ||
	    bpf_skb_adjust_room(skb, l3 + ICMP_LENGTH, BPF_ADJ_ROOM_MAC, 0))
		return nat_failed();
	at = refuse_headers(skb, ctx, protocol, length);
	return !at || bpf_skb_store_bytes(skb, at, &icmp, sizeof(icmp), BPF_F_INVALIDATE_HASH) ? nat_failed() : 0;
}
