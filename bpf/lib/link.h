/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Link-scope traffic of pods. Neighbours are permanent, so none is needed; none leaves the node; and the only kind
 * that is let up to the node at all is a truthful answer to the node's own question where the pod is. */
#pragma once
#include "endpoints.h"
#include "metrics.h"
#include "parse.h"

struct arp_packet {
	u16 hardware;
	u16 protocol;
	u8 hardware_length;
	u8 protocol_length;
	u16 operation;
	u8 sender_mac[6];
	u16 sender_ip[2]; /* halves: the header is not aligned to 4 */
	u8 target_mac[6];
	u16 target_ip[2];
};

struct neighbor_advertisement {
	u8 type;
	u8 code;
	u16 checksum;
	u32 flags;
	struct addr target;
};

INLINE bool mac_equal(const u8 *a, const u8 *b)
{
	return *(u32 *)a == *(u32 *)b && *(u16 *)(a + 4) == *(u16 *)(b + 4);
}

INLINE bool is_truthful_arp(struct __sk_buff *skb, const struct endpoint_info *ep)
{
	struct arp_packet *arp = packet_bytes(skb, L3_OFF, sizeof(*arp));

	return arp && arp->operation == bpf_htons(2) && mac_equal(arp->sender_mac, ep->mac) &&
	       (arp->sender_ip[0] | (u32)arp->sender_ip[1] << 16) == ep->ipv4.w[3];
}

INLINE bool is_truthful_advertisement(struct __sk_buff *skb, const struct endpoint_info *ep)
{
	struct ipv6_header *ip = packet_bytes(skb, L3_OFF, sizeof(*ip) + sizeof(struct neighbor_advertisement));
	struct neighbor_advertisement *na;

	if (!ip || ip->next_header != PROTO_ICMPV6)
		return false;
	na = (void *)ip + sizeof(*ip);
	return na->type == ICMPV6_NEIGHBOR_ADVERTISEMENT && addr_equal(&na->target, &ep->ipv6);
}

INLINE int link_from_endpoint(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct endpoint_info *ep)
{
	bool arp = skb->protocol == bpf_htons(ETHERTYPE_ARP);
	bool truthful = false;

	if (arp)
		truthful = is_truthful_arp(skb, ep);
	else if (ctx->family == 6)
		truthful = is_truthful_advertisement(skb, ep);
	count_packet(DIR_EGRESS, truthful ? 0 : DROP_UNSUPPORTED_L3_PROTOCOL, ctx->ip_len);
	return truthful ? TC_ACT_OK : TC_ACT_SHOT;
}
