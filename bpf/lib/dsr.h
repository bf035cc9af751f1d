/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Direct server return: the packet that opens a connection carries the address and port that the client used, as an IPv4
 * option or an IPv6 destination option (the field's formats); the backend's node takes them out, and answers in their
 * name. Packets that have options or extensions already, or no room, carry nothing more. */
#pragma once
#include "context.h"
#include "drop_reasons.h"
#include "nat.h"
#include "parse.h"

enum {
	DSR_IPV4_TYPE = 0x9a, /* RFC 791, 3.1: copied to fragments, number 26 */
	DSR_IPV6_TYPE = 0x1b, /* RFC 8200, 4.2: who does not know it skips it */
	IPV4_BASE = 20,
	IPV6_BASE = 40,
};

struct dsr_ipv4 {
	u8 type;
	u8 length;
	u16 port;
	u32 address;
};
_Static_assert(sizeof(struct dsr_ipv4) == 8, "dsr_ipv4");

struct dsr_ipv6 {
	u8 next_header;
	u8 units; /* of 8 bytes, beyond the first 8 */
	u8 type;
	u8 length; /* of what follows */
	struct addr address;
	u16 port;
	u16 pad;
};
_Static_assert(sizeof(struct dsr_ipv6) == 24, "dsr_ipv6");

/* Nothing stands between the network header and L4. */
INLINE bool is_plain_header(const struct pkt_ctx *ctx)
{
	return ctx->l4_off == L3_OFF + (ctx->family == 4 ? IPV4_BASE : IPV6_BASE);
}

INLINE u32 dsr_length(u8 family)
{
	return family == 4 ? sizeof(struct dsr_ipv4) : sizeof(struct dsr_ipv6);
}

/* Can the packet carry it, as far as its headers go? */
INLINE bool dsr_carries(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	return is_plain_header(ctx) && !(ctx->flags & CTX_F_NO_L4) && !skb->gso_size;
}

/* Would it still fit into the device that it came by? 0, or what does. */
INLINE u32 dsr_limit(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	u32 mtu = 0;

	return bpf_check_mtu(skb, 0, &mtu, dsr_length(ctx->family), 0) ? mtu : 0;
}

INLINE bool dsr_fits(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	return dsr_carries(skb, ctx) && !dsr_limit(skb, ctx);
}

INLINE u16 dsr_checksum(s64 partial)
{
	u64 sum = (u32)partial;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* IPv4's lengths and checksum after the option came (or went). */
INLINE int dsr_fix_ipv4(struct __sk_buff *skb, bool came)
{
	struct ipv4_header *ip = packet_bytes(skb, L3_OFF, IPV4_BASE + sizeof(struct dsr_ipv4));
	u16 length;

	if (!ip)
		return nat_failed();
	length = bpf_ntohs(ip->total_length);
	ip->version_ihl = came ? 0x47 : 0x45;
	ip->total_length = bpf_htons(came ? length + sizeof(struct dsr_ipv4) : length - sizeof(struct dsr_ipv4));
	ip->checksum = 0;
	if (came)
		ip->checksum = dsr_checksum(bpf_csum_diff(NULL, 0, (void *)ip, IPV4_BASE + sizeof(struct dsr_ipv4), 0));
	else
		ip->checksum = dsr_checksum(bpf_csum_diff(NULL, 0, (void *)ip, IPV4_BASE, 0));
	return 0;
}

/* The same for IPv6, whose checksums do not cover it. */
INLINE int dsr_fix_ipv6(struct __sk_buff *skb, s32 delta, u8 next_header)
{
	struct ipv6_header *ip = packet_bytes(skb, L3_OFF, sizeof(*ip));

	if (!ip)
		return nat_failed();
	ip->next_header = next_header;
	ip->payload_length = bpf_htons(bpf_ntohs(ip->payload_length) + delta);
	return 0;
}

/* Put ctx->service_address and ctx->service_port into the packet, which has room (dsr_fits). 0 or a drop reason. */
INLINE int dsr_insert(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	u32 length = dsr_length(ctx->family);
	int reason;

	if (bpf_skb_adjust_room(skb, length, BPF_ADJ_ROOM_NET, 0))
		return nat_failed();
	if (ctx->family == 4) {
		struct dsr_ipv4 option = { .type = DSR_IPV4_TYPE,
					   .length = sizeof(option),
					   .port = ctx->service_port,
					   .address = ctx->service_address.w[3] };

		if (bpf_skb_store_bytes(skb, L3_OFF + IPV4_BASE, &option, sizeof(option), 0))
			return nat_failed();
		reason = dsr_fix_ipv4(skb, true);
	} else {
		struct dsr_ipv6 option = { .next_header = ctx->protocol,
					   .units = sizeof(option) / 8 - 1,
					   .type = DSR_IPV6_TYPE,
					   .length = sizeof(option) - 4,
					   .address = ctx->service_address,
					   .port = ctx->service_port };

		if (bpf_skb_store_bytes(skb, L3_OFF + IPV6_BASE, &option, sizeof(option), 0))
			return nat_failed();
		reason = dsr_fix_ipv6(skb, sizeof(option), PROTO_DSTOPTS);
	}
	ctx->l4_off += length;
	ctx->ip_len += length;
	return reason;
}

/* Does the packet carry an address? It is in ctx->service_* then. */
INLINE bool dsr_read(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	if (ctx->family == 4) {
		struct dsr_ipv4 *option = packet_bytes(skb, L3_OFF + IPV4_BASE, sizeof(*option));

		if (!option || ctx->l4_off != L3_OFF + IPV4_BASE + sizeof(*option) || option->type != DSR_IPV4_TYPE ||
		    option->length != sizeof(*option))
			return false;
		addr_set_v4(&ctx->service_address, option->address);
		ctx->service_port = option->port;
	} else {
		struct dsr_ipv6 *option = packet_bytes(skb, L3_OFF + IPV6_BASE, sizeof(*option));

		if (!option || ctx->l4_off != L3_OFF + IPV6_BASE + sizeof(*option) || option->type != DSR_IPV6_TYPE ||
		    option->length != sizeof(*option) - 4)
			return false;
		ctx->service_address = option->address;
		ctx->service_port = option->port;
	}
	return true;
}

/* Take it out again. 0 or a drop reason. */
INLINE int dsr_remove(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	u32 length = dsr_length(ctx->family);
	int reason;

	if (bpf_skb_adjust_room(skb, -(s32)length, BPF_ADJ_ROOM_NET, 0))
		return nat_failed();
	reason = ctx->family == 4 ? dsr_fix_ipv4(skb, false) : dsr_fix_ipv6(skb, -(s32)length, ctx->protocol);
	ctx->l4_off -= length;
	ctx->payload_off -= length;
	ctx->ip_len -= length;
	return reason;
}
