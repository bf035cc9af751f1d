/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets that the kernel sends by itself: built over the one at hand, from scratch, with its addresses. */
#pragma once
#include "conntrack.h"
#include "endpoints.h"
#include "l3_header.h"
#include "parse.h"

/* On packets that the kernel sends to a pod in somebody else's name. Pods cannot set it: the mark is cleared when a
 * packet changes network namespace. It is MARK_DELIVERED (deliver.h): to_endpoint lets them be. */
#define OWN_PACKET_MARK 0xc1110003

enum {
	OWN_PACKET_L3 = 16, /* two bytes of padding before Ethernet, so that the rest is aligned */
	OWN_PACKET_BYTES = 512,
};

struct own_packet {
	u8 bytes[OWN_PACKET_BYTES];
	u8 pseudo[40];
};

/* In whose name a client is answered: whom it has addressed. In the receiver's turn that is the pod; what else it may have
 * been is put back on the way. In the sender's turn nobody does, so that it is put back here. */
INLINE void own_server(const struct pkt_ctx *ctx, struct addr *address, u16 *port)
{
	struct ct_entry *entry = ctx->direction == DIR_EGRESS ? ct.lookup(&ctx->key) : NULL;

	*address = ctx->daddr;
	*port = ctx->dport;
	if (entry && entry->nat_port) {
		*address = entry->nat_address;
		*port = entry->nat_port;
	}
}

INLINE u8 *own_l4(struct own_packet *p, const struct pkt_ctx *ctx)
{
	return ctx->family == 4 ? &p->bytes[OWN_PACKET_L3 + sizeof(struct ipv4_header)] :
				  &p->bytes[OWN_PACKET_L3 + sizeof(struct ipv6_header)];
}

/* The network header and the pseudo-header; returns the header's length. */
INLINE u32 own_build_l3(struct own_packet *p, const struct pkt_ctx *ctx, const struct addr *from, const struct addr *to,
			u32 l4_length)
{
	struct addr *addresses = (void *)p->pseudo;
	u32 *words = (void *)p->pseudo;

	if (ctx->family == 4) {
		words[0] = from->w[3];
		words[1] = to->w[3];
		words[2] = bpf_htonl((ctx->protocol << 16) | l4_length);
	} else {
		addresses[0] = *from;
		addresses[1] = *to;
		words[8] = bpf_htonl(l4_length);
		words[9] = bpf_htonl(ctx->protocol);
	}
	return l3_header(&p->bytes[OWN_PACKET_L3], ctx, from, to, ctx->protocol, l4_length);
}

/* Replace the packet at hand by `l4_length` bytes of L4 behind a network header. The L4 checksum field holds 0xffff,
 * which is zero to both forms that a packet may carry it in, complete or left to the device; the helper knows which.
 * Zeros follow the L4 bytes. ctx->ip_len follows. 0 or a drop reason. */
INLINE int own_store(struct __sk_buff *skb, struct own_packet *p, struct pkt_ctx *ctx, u32 l3_length, u32 l4_length,
		     u32 checksum_off)
{
	u32 at = L3_OFF + l3_length + checksum_off;
	u64 padded = ((u64)l4_length + 3) & 0x1fc;
	u64 total = l3_length + l4_length;
	s64 sum, pseudo;

	asm volatile("" : "+r"(padded)); /* the very register that is compared goes to the helper */
	total &= OWN_PACKET_BYTES - 1;
	if (!total || total > OWN_PACKET_BYTES - OWN_PACKET_L3 || padded > 440)
		return DROP_ERROR_WRITING_TO_PACKET;
	if (bpf_skb_change_tail(skb, L3_OFF + total, 0))
		return DROP_ERROR_WRITING_TO_PACKET;
	if (bpf_skb_store_bytes(skb, L3_OFF, &p->bytes[OWN_PACKET_L3], total,
				BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH))
		return DROP_ERROR_WRITING_TO_PACKET;
	sum = bpf_csum_diff(0, 0, (void *)own_l4(p, ctx), padded, 0);
	pseudo = bpf_csum_diff(0, 0, (void *)p->pseudo, ctx->family == 4 ? 12 : 40, 0);
	if (sum < 0 || pseudo < 0 || bpf_l4_csum_replace(skb, at, 0, sum, 0) ||
	    bpf_l4_csum_replace(skb, at, 0, pseudo, BPF_F_PSEUDO_HDR))
		return DROP_ERROR_WRITING_TO_PACKET;
	ctx->ip_len = total;
	return 0;
}

/* Send the packet at hand to the pod that it came from, through the hook that the node's stack would use. Returns a
 * verdict for `finish`. */
INLINE int own_return(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	struct endpoint_info *pod = endpoint_by_id(ctx->src_endpoint);
	u8 mac[12];

	if (!pod)
		return -DROP_EP_NOT_READY;
	__builtin_memcpy(mac, pod->mac, 6);
	__builtin_memcpy(mac + 6, pod->node_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
		return -DROP_ERROR_WRITING_TO_PACKET;
	skb->mark = OWN_PACKET_MARK;
	return bpf_redirect(pod->ifindex, 0);
}
