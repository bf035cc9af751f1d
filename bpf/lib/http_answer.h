/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The kernel's own packets: built from scratch over the one at hand, with its addresses.
 *
 * Towards the client they enter the node like the server's own, through the ingress hook of its veth, so that
 * conntrack, Service translation and the overlay treat them alike. */
#pragma once
#include "endpoints.h"
#include "http_hook.h"
#include "parse.h"

enum http_answer {
	HTTP_ANSWER_FORBIDDEN = 1, /* 403 and FIN to the client, RST to the server */
	HTTP_ANSWER_RESET = 2,     /* RST to both */
	HTTP_ANSWER_AFTER = 3,     /* the client goes on after its answer: acknowledge, let it close */
	HTTP_ANSWER_AUDIT = 4,     /* nobody is answered: tell what would have been, and follow the connection no more */
};

#define HTTP_403_HEAD \
	"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 15\r\nConnection: close\r\n\r\n"
#define HTTP_403_BODY "Access denied\r\n"
#define HTTP_403 HTTP_403_HEAD HTTP_403_BODY

enum {
	HTTP_403_HEAD_LENGTH = sizeof(HTTP_403_HEAD) - 1,
	HTTP_403_LENGTH = sizeof(HTTP_403) - 1,
	TCP_TIMESTAMPS_LENGTH = 12,
	HTTP_WINDOW = 512,
};

struct http_segment {
	bool to_client;
	u8 flags;
	u16 payload; /* bytes of HTTP_403 */
	u32 seq;
	u32 ack;
};

/* L3 begins at offset 16 of w->packet, so that headers are aligned. */
#define HTTP_PACKET_L2 2
#define HTTP_PACKET_L3 16

INLINE u16 http_fold(u64 sum)
{
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + ((sum >> 32) & 0xffff);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Network header; returns its length. */
INLINE u32 http_build_l3(struct http_work *w, const struct pkt_ctx *ctx, bool to_client, u32 l4_length)
{
	const struct addr *from = to_client ? &ctx->daddr : &ctx->saddr;
	const struct addr *to = to_client ? &ctx->saddr : &ctx->daddr;

	if (ctx->family == 4) {
		struct ipv4_header *ip = (void *)&w->packet[HTTP_PACKET_L3];
		u32 *pseudo = (void *)w->pseudo;

		__builtin_memset(ip, 0, sizeof(*ip));
		ip->version_ihl = 0x45;
		ip->total_length = bpf_htons(sizeof(*ip) + l4_length);
		ip->fragment = bpf_htons(0x4000); /* do not fragment */
		ip->ttl = 64;
		ip->protocol = PROTO_TCP;
		ip->saddr = from->w[3];
		ip->daddr = to->w[3];
		ip->checksum = http_fold(bpf_csum_diff(0, 0, (void *)ip, sizeof(*ip), 0));
		pseudo[0] = from->w[3];
		pseudo[1] = to->w[3];
		pseudo[2] = bpf_htonl((PROTO_TCP << 16) | l4_length);
		return sizeof(*ip);
	}
	struct ipv6_header *ip = (void *)&w->packet[HTTP_PACKET_L3];
	struct addr *addresses = (void *)w->pseudo;
	u32 *rest = (void *)&w->pseudo[32];

	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version_class_flow = bpf_htonl(0x60000000);
	ip->payload_length = bpf_htons(l4_length);
	ip->next_header = PROTO_TCP;
	ip->hop_limit = 64;
	ip->saddr = *from;
	ip->daddr = *to;
	addresses[0] = *from;
	addresses[1] = *to;
	rest[0] = bpf_htonl(l4_length);
	rest[1] = bpf_htonl(PROTO_TCP);
	return sizeof(*ip);
}

/* TCP header and payload; returns their length. The answer repeats the timestamps that the client echoed, without
 * which some stacks would take it for old. */
INLINE u32 http_build_l4(struct http_work *w, const struct pkt_ctx *ctx, u8 *l4, const struct http_segment *segment)
{
	struct tcp_header *tcp = (void *)l4;
	u32 header = sizeof(*tcp);

	__builtin_memset(l4, 0, 144);
	tcp->sport = segment->to_client ? ctx->dport : ctx->sport;
	tcp->dport = segment->to_client ? ctx->sport : ctx->dport;
	tcp->seq = bpf_htonl(segment->seq);
	tcp->ack = bpf_htonl(segment->ack);
	tcp->flags = segment->flags;
	tcp->window = segment->flags & TCP_RST ? 0 : bpf_htons(HTTP_WINDOW);
	tcp->checksum = 0xffff;
	if (segment->to_client && w->timestamps) {
		u32 *option = (void *)(l4 + sizeof(*tcp));

		option[0] = bpf_htonl(0x0101080a);
		option[1] = w->ts_echo;
		option[2] = w->ts_value;
		header += TCP_TIMESTAMPS_LENGTH;
		if (segment->payload)
			__builtin_memcpy(l4 + sizeof(*tcp) + TCP_TIMESTAMPS_LENGTH, HTTP_403, HTTP_403_LENGTH);
	} else if (segment->payload) {
		__builtin_memcpy(l4 + sizeof(*tcp), HTTP_403, HTTP_403_LENGTH);
	}
	tcp->data_offset = header << 2;
	return header + segment->payload;
}

/* The checksum, in whichever form the packet carries it: complete, or only of the pseudo-header with the rest left to
 * the device. The helper knows which, programs do not; the field starts as 0xffff, which is zero to both. */
INLINE int http_store_checksum(struct __sk_buff *skb, struct http_work *w, const struct pkt_ctx *ctx, u8 *l4, u32 length)
{
	u32 offset = ctx->l4_off + __builtin_offsetof(struct tcp_header, checksum);
	u32 padded = (length + 3) & 0xfc; /* zeros follow */
	s64 segment = bpf_csum_diff(0, 0, (void *)l4, padded, 0);
	s64 pseudo = bpf_csum_diff(0, 0, (void *)w->pseudo, ctx->family == 4 ? 12 : 40, 0);

	if (segment < 0 || pseudo < 0)
		return -1;
	if (bpf_l4_csum_replace(skb, offset, 0, segment, 0))
		return -1;
	return bpf_l4_csum_replace(skb, offset, 0, pseudo, BPF_F_PSEUDO_HDR);
}

/* Turn the packet at hand into `segment`. 0 or a drop reason. */
INLINE int http_build(struct __sk_buff *skb, struct http_work *w, struct pkt_ctx *ctx, const struct http_segment *segment)
{
	bool v4 = ctx->family == 4;
	u8 *l4 = v4 ? &w->packet[HTTP_PACKET_L3 + sizeof(struct ipv4_header)] :
		      &w->packet[HTTP_PACKET_L3 + sizeof(struct ipv6_header)];
	u32 length = http_build_l4(w, ctx, l4, segment);
	u32 total = length + http_build_l3(w, ctx, segment->to_client, length);

	total &= 255;
	if (!total || bpf_skb_change_tail(skb, L3_OFF + total, 0))
		return DROP_ERROR_WRITING_TO_PACKET;
	if (bpf_skb_store_bytes(skb, L3_OFF, &w->packet[HTTP_PACKET_L3], total,
				BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH))
		return DROP_ERROR_WRITING_TO_PACKET;
	if (http_store_checksum(skb, w, ctx, l4, length))
		return DROP_ERROR_WRITING_TO_PACKET;
	ctx->ip_len = total;
	return 0;
}

/* What the answers take from the packet, before it is overwritten. */
INLINE int http_note_packet(struct __sk_buff *skb, struct http_work *w, const struct pkt_ctx *ctx)
{
	u32 options[3];

	w->timestamps = 0;
	if (bpf_skb_load_bytes(skb, 0, w->mac, sizeof(w->mac)))
		return DROP_INVALID_PACKET_DROPPED;
	if (ctx->payload_off < ctx->l4_off + sizeof(struct tcp_header) + TCP_TIMESTAMPS_LENGTH ||
	    bpf_skb_load_bytes(skb, ctx->l4_off + sizeof(struct tcp_header), options, sizeof(options)))
		return 0;
	if (options[0] == bpf_htonl(0x0101080a)) {
		w->timestamps = 1;
		w->ts_value = options[1];
		w->ts_echo = options[2];
	}
	return 0;
}

/* Send `segment` to the client, as if the server's pod had; the packet at hand is built over. 0 or a drop reason. */
INLINE int http_send_to_client(struct __sk_buff *skb, struct http_work *w, struct pkt_ctx *ctx,
			       const struct http_segment *segment)
{
	struct endpoint_info *server = endpoint_by_id(ctx->dst_endpoint);
	u32 mark = skb->mark;
	u8 mac[12];
	int reason;

	if (!server)
		return DROP_EP_NOT_READY;
	reason = http_build(skb, w, ctx, segment);
	if (reason)
		return reason;
	__builtin_memcpy(mac, server->node_mac, 6);
	__builtin_memcpy(mac + 6, server->mac, 6);
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
		return DROP_ERROR_WRITING_TO_PACKET;
	skb->mark = HTTP_MARK_ANSWER;
	reason = bpf_clone_redirect(skb, server->ifindex, BPF_F_INGRESS);
	skb->mark = mark;
	return reason ? DROP_ERROR_WRITING_TO_PACKET : 0;
}

/* Make the packet at hand a reset of the server's socket: it goes on to the pod. 0 or a drop reason. */
INLINE int http_reset_server(struct __sk_buff *skb, struct http_work *w, struct pkt_ctx *ctx)
{
	struct http_segment segment = {
		.to_client = false,
		.flags = TCP_RST | TCP_ACK,
		.payload = 0,
		.seq = w->expected,
		.ack = ctx->tcp_ack,
	};
	int reason = http_build(skb, w, ctx, &segment);

	if (!reason && bpf_skb_store_bytes(skb, 0, w->mac, sizeof(w->mac), 0))
		reason = DROP_ERROR_WRITING_TO_PACKET;
	return reason;
}
