/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The kernel's own packets: built from scratch over the one at hand, with its addresses.
 *
 * In the receiver's turn those to the client enter the node like the server's own, through the ingress hook of its veth,
 * so that conntrack, Service translation and the overlay treat them alike. In the sender's turn they go to its pod at once. */
#pragma once
#include "conntrack.h"
#include "endpoints.h"
#include "http_hook.h"
#include "own_packet.h"
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
	u16 sport; /* to the client: in whose name */
	struct addr saddr;
};

/* Answers come from whom the client has addressed. In the receiver's turn that is the pod; what else it may have been
 * is put back on the way. In the sender's turn it is put back here. */
INLINE void http_name_server(const struct pkt_ctx *ctx, struct http_segment *segment)
{
	struct ct_entry *entry = ctx->direction == DIR_EGRESS ? ct.lookup(&ctx->key) : NULL;

	segment->saddr = ctx->daddr;
	segment->sport = ctx->dport;
	if (!entry)
		return;
	if (entry->nat_port) {
		segment->saddr = entry->nat_address;
		segment->sport = entry->nat_port;
	}
	/* Nobody else tells conntrack what is sent past the hooks. */
	entry->flags |= segment->flags & TCP_RST ? CT_F_RST : segment->flags & TCP_FIN ? CT_F_FIN_REPLY : 0;
}

/* TCP header and payload; returns their length. The answer repeats the timestamps that the client echoed, without
 * which some stacks would take it for old. */
INLINE u32 http_build_l4(struct http_work *w, const struct pkt_ctx *ctx, u8 *l4, const struct http_segment *segment)
{
	struct tcp_header *tcp = (void *)l4;
	u32 header = sizeof(*tcp);

	__builtin_memset(l4, 0, 144);
	tcp->sport = segment->to_client ? segment->sport : ctx->sport;
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

/* Turn the packet at hand into `segment`. 0 or a drop reason. */
INLINE int http_build(struct __sk_buff *skb, struct http_work *w, struct pkt_ctx *ctx, const struct http_segment *segment)
{
	struct addr from = segment->to_client ? segment->saddr : ctx->saddr;
	struct addr to = segment->to_client ? ctx->saddr : ctx->daddr;
	u32 length = http_build_l4(w, ctx, own_l4(&w->own, ctx), segment);
	u32 l3 = own_build_l3(&w->own, ctx, &from, &to, length);

	return own_store(skb, &w->own, ctx, l3, length, __builtin_offsetof(struct tcp_header, checksum));
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

/* Send `segment` to the client; the packet at hand is built over. As if the server's pod had sent it, or, where the client
 * is the pod whose turn it is, straight to that. 0 or a drop reason. */
INLINE int http_send_to_client(struct __sk_buff *skb, struct http_work *w, struct pkt_ctx *ctx,
			       struct http_segment *segment)
{
	bool sends = ctx->direction == DIR_EGRESS;
	struct endpoint_info *pod = endpoint_by_id(sends ? ctx->src_endpoint : ctx->dst_endpoint);
	u32 mark = skb->mark;
	u8 mac[12];
	int reason;

	if (!pod)
		return DROP_EP_NOT_READY;
	http_name_server(ctx, segment);
	reason = http_build(skb, w, ctx, segment);
	if (reason)
		return reason;
	__builtin_memcpy(mac, sends ? pod->mac : pod->node_mac, 6);
	__builtin_memcpy(mac + 6, sends ? pod->node_mac : pod->mac, 6);
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
		return DROP_ERROR_WRITING_TO_PACKET;
	skb->mark = sends ? OWN_PACKET_MARK : HTTP_MARK_ANSWER;
	reason = bpf_clone_redirect(skb, pod->ifindex, sends ? 0 : BPF_F_INGRESS);
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
	/* The next turn is about this packet. */
	ctx->tcp_flags = segment.flags;
	ctx->tcp_seq = segment.seq;
	ctx->payload_len = 0;
	return reason;
}
