/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Network headers of packets that the kernel writes by itself, and the Internet checksum (RFC 1071). */
#pragma once
#include "context.h"
#include "parse.h"

#define OWN_TTL 64

INLINE u16 checksum_fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Write a header of ctx's family at `at`, `length` bytes of `protocol` behind it. Returns its own length. */
INLINE u32 l3_header(void *at, const struct pkt_ctx *ctx, const struct addr *from, const struct addr *to, u8 protocol,
		     u32 length)
{
	struct ipv4_header *ip4 = at;
	struct ipv6_header *ip6 = at;

	if (ctx->family == 4) {
		__builtin_memset(ip4, 0, sizeof(*ip4));
		ip4->version_ihl = 0x45;
		ip4->total_length = bpf_htons(sizeof(*ip4) + length);
		ip4->fragment = bpf_htons(0x4000); /* do not fragment */
		ip4->ttl = OWN_TTL;
		ip4->protocol = protocol;
		ip4->saddr = from->w[3];
		ip4->daddr = to->w[3];
		ip4->checksum = checksum_fold(bpf_csum_diff(NULL, 0, (void *)ip4, sizeof(*ip4), 0));
		return sizeof(*ip4);
	}
	__builtin_memset(ip6, 0, sizeof(*ip6));
	ip6->version_class_flow = bpf_htonl(0x60000000);
	ip6->payload_length = bpf_htons(length);
	ip6->next_header = protocol;
	ip6->hop_limit = OWN_TTL;
	ip6->saddr = *from;
	ip6->daddr = *to;
	return sizeof(*ip6);
}
