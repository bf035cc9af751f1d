/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* XDP's view of a packet: the plain ones only, without options, extensions or fragments. Translation and checksums are
 * done by hand, because the kernel's helpers want an sk_buff. */
#pragma once
#include "config.h"
#include "context.h"
#include "endpoints.h"
#include "ipcache.h"
#include "lb.h"
#include "metrics.h"
#include "netdev.h"
#include "snat.h"
#include "wire.h"

enum {
	XDP_IPV4_L4 = L3_OFF + 20,
	XDP_IPV6_L4 = L3_OFF + 40,
};

/* Ports and what TCP says. False: not here. */
INLINE bool xdp_parse_l4(struct pkt_ctx *ctx, void *at, void *end)
{
	struct l4_header *l4 = at;
	struct tcp_header *tcp = at;

	if (ctx->protocol != PROTO_TCP) {
		if (ctx->protocol != PROTO_UDP || (void *)(l4 + 1) > end)
			return false;
		ctx->sport = l4->sport;
		ctx->dport = l4->dport;
		return true;
	}
	if ((void *)(tcp + 1) > end)
		return false;
	ctx->sport = tcp->sport;
	ctx->dport = tcp->dport;
	ctx->tcp_flags = tcp->flags;
	if ((tcp->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		ctx->flags |= CTX_F_SYN;
	return true;
}

INLINE bool xdp_parse(struct xdp_md *xdp, struct pkt_ctx *ctx)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct eth_header *eth = data;
	struct ipv4_header *ip = data + L3_OFF;
	struct ipv6_header *ip6 = data + L3_OFF;

	if (data + XDP_IPV4_L4 > end)
		return false;
	ctx->flags = 0;
	ctx->tcp_flags = 0;
	ctx->icmp_type = 0;
	ctx->now_ns = bpf_ktime_get_coarse_ns();
	if (eth->protocol == bpf_htons(ETHERTYPE_IPV4)) {
		if (ip->version_ihl != 0x45 || (ip->fragment & bpf_htons(0x3fff)) || ip->ttl <= 1)
			return false;
		ctx->family = 4;
		ctx->protocol = ip->protocol;
		ctx->ip_len = bpf_ntohs(ip->total_length);
		addr_set_v4(&ctx->saddr, ip->saddr);
		addr_set_v4(&ctx->daddr, ip->daddr);
		return xdp_parse_l4(ctx, data + XDP_IPV4_L4, end);
	}
	if (eth->protocol != bpf_htons(ETHERTYPE_IPV6) || data + XDP_IPV6_L4 > end || ip6->hop_limit <= 1)
		return false;
	ctx->family = 6;
	ctx->protocol = ip6->next_header;
	ctx->ip_len = bpf_ntohs(ip6->payload_length) + 40;
	ctx->saddr = ip6->saddr;
	ctx->daddr = ip6->daddr;
	return xdp_parse_l4(ctx, data + XDP_IPV6_L4, end);
}

INLINE u16 xdp_fold(s64 sum)
{
	u64 folded = (u32)sum;

	folded = (folded & 0xffff) + (folded >> 16);
	folded = (folded & 0xffff) + (folded >> 16);
	return ~folded;
}

/* What the L4 checksum becomes when both ends change. */
INLINE u16 xdp_l4_checksum(u16 checksum, const struct pkt_ctx *ctx, const struct nat_entry *entry)
{
	u16 old_ports[2] = { ctx->sport, ctx->dport }, new_ports[2] = { entry->sport, entry->dport };
	s64 sum = (u16)~checksum;

	/* The v4-mapped prefix is the same on both sides. */
	sum = bpf_csum_diff((void *)&ctx->saddr, 16, (void *)&entry->saddr, 16, sum);
	sum = bpf_csum_diff((void *)&ctx->daddr, 16, (void *)&entry->daddr, 16, sum);
	sum = bpf_csum_diff((void *)old_ports, 4, (void *)new_ports, 4, sum);
	return xdp_fold(sum);
}

/* Both ends and one hop, of the frame `at` bytes into the packet; ctx still has the old ones. False: too short, which
 * cannot be, as it was parsed. */
INLINE bool xdp_translate(struct xdp_md *xdp, const struct pkt_ctx *ctx, const struct nat_entry *entry, u32 at)
{
	void *data = (void *)(long)xdp->data + at, *end = (void *)(long)xdp->data_end;
	struct ipv4_header *ip = data + L3_OFF;
	struct ipv6_header *ip6 = data + L3_OFF;
	struct tcp_header *tcp;
	struct l4_header *udp;
	s64 sum;

	if (ctx->family == 4) {
		if (data + XDP_IPV4_L4 > end)
			return false;
		sum = (u16)~ip->checksum;
		sum = bpf_csum_diff((void *)&ip->saddr, 4, (void *)&entry->saddr.w[3], 4, sum);
		sum = bpf_csum_diff((void *)&ip->daddr, 4, (void *)&entry->daddr.w[3], 4, sum);
		/* The time to live is the upper half of its word. */
		ip->checksum = xdp_fold(sum + (u16)~bpf_htons(0x0100));
		ip->ttl -= 1;
		ip->saddr = entry->saddr.w[3];
		ip->daddr = entry->daddr.w[3];
		udp = data + XDP_IPV4_L4;
	} else {
		if (data + XDP_IPV6_L4 > end)
			return false;
		ip6->hop_limit -= 1;
		ip6->saddr = entry->saddr;
		ip6->daddr = entry->daddr;
		udp = data + XDP_IPV6_L4;
	}
	if ((void *)(udp + 1) > end)
		return false;
	udp->sport = entry->sport;
	udp->dport = entry->dport;
	if (ctx->protocol == PROTO_UDP) {
		if (udp->checksum) {
			udp->checksum = xdp_l4_checksum(udp->checksum, ctx, entry);
			if (!udp->checksum)
				udp->checksum = 0xffff;
		}
		return true;
	}
	tcp = (void *)udp;
	if ((void *)(tcp + 1) > end)
		return false;
	tcp->checksum = xdp_l4_checksum(tcp->checksum, ctx, entry);
	return true;
}
