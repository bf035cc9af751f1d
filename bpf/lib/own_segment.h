/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TCP segments that the kernel sends in somebody's name: answers to a client, resets to its server.
 *
 * In the receiver's turn those to the client enter the node like the server's own, through the ingress hook of its veth,
 * so that conntrack, Service translation and the overlay treat them alike. In the sender's turn they go to its pod at once. */
#pragma once
#include "conntrack.h"
#include "context.h"
#include "drop_reasons.h"
#include "endpoints.h"
#include "own_packet.h"
#include "parse.h"

enum {
	OWN_TIMESTAMPS = 12, /* bytes of the TCP option, padded */
	OWN_WINDOW = 512,
	OWN_CUT_MAX = 368, /* bytes of payload that fit with the longest TCP header into an own packet */
};

struct own_segment {
	bool to_client;
	u8 flags;
	u16 payload; /* bytes */
	u32 seq;
	u32 ack;
	u16 sport; /* to the client: in whose name */
	struct addr saddr;
};

/* A segment under construction, and what it takes from the packet that it is built over. */
struct own_tcp {
	u32 ts_value; /* network order */
	u32 ts_echo;
	u32 timestamps; /* the packet had them, answers get them too */
	u8 mac[12];     /* of the packet as it came */
	struct own_packet packet;
};

/* What segments take from the packet, before it is overwritten. 0 or a drop reason. */
INLINE int own_note(struct __sk_buff *skb, struct own_tcp *own, const struct pkt_ctx *ctx)
{
	u32 options[3];

	own->timestamps = 0;
	if (bpf_skb_load_bytes(skb, 0, own->mac, sizeof(own->mac)))
		return DROP_INVALID_PACKET_DROPPED;
	if (ctx->payload_off < ctx->l4_off + sizeof(struct tcp_header) + OWN_TIMESTAMPS ||
	    bpf_skb_load_bytes(skb, ctx->l4_off + sizeof(struct tcp_header), options, sizeof(options)))
		return 0;
	if (options[0] == bpf_htonl(0x0101080a)) {
		own->timestamps = 1;
		own->ts_value = options[1];
		own->ts_echo = options[2];
	}
	return 0;
}

/* A segment to the client comes from whom it has addressed, and is noted in its connection: nobody else tells conntrack
 * what is sent past the hooks. */
INLINE void own_name_server(const struct pkt_ctx *ctx, struct own_segment *segment)
{
	struct ct_entry *entry = ctx->direction == DIR_EGRESS ? ct.lookup(&ctx->key) : NULL;

	own_server(ctx, &segment->saddr, &segment->sport);
	if (entry)
		entry->flags |= segment->flags & TCP_RST ? CT_F_RST : segment->flags & TCP_FIN ? CT_F_FIN_REPLY : 0;
}

/* The TCP header at `l4`; returns its length, behind which the payload goes. An answer repeats the timestamps that the
 * client echoed, without which some stacks would take it for old. */
INLINE u32 own_tcp_header(const struct own_tcp *own, const struct pkt_ctx *ctx, u8 *l4, const struct own_segment *segment)
{
	struct tcp_header *tcp = (void *)l4;
	u32 *option = (void *)(l4 + sizeof(*tcp)), header = sizeof(*tcp);

	__builtin_memset(l4, 0, sizeof(*tcp) + OWN_TIMESTAMPS);
	tcp->sport = segment->to_client ? segment->sport : ctx->sport;
	tcp->dport = segment->to_client ? ctx->sport : ctx->dport;
	tcp->seq = bpf_htonl(segment->seq);
	tcp->ack = bpf_htonl(segment->ack);
	tcp->flags = segment->flags;
	tcp->window = segment->flags & TCP_RST ? 0 : bpf_htons(OWN_WINDOW);
	tcp->checksum = 0xffff;
	if (segment->to_client && own->timestamps) {
		option[0] = bpf_htonl(0x0101080a);
		option[1] = own->ts_echo;
		option[2] = own->ts_value;
		header += OWN_TIMESTAMPS;
	}
	tcp->data_offset = header << 2;
	return header;
}

/* The packet at hand becomes `segment`, whose `length` bytes of TCP are in place. 0 or a drop reason. */
INLINE int own_replace(struct __sk_buff *skb, struct own_tcp *own, struct pkt_ctx *ctx, const struct own_segment *segment,
		       u32 length)
{
	struct addr from = segment->to_client ? segment->saddr : ctx->saddr;
	struct addr to = segment->to_client ? ctx->saddr : ctx->daddr;
	u32 l3 = own_build_l3(&own->packet, ctx, &from, &to, length);

	return own_store(skb, &own->packet, ctx, l3, length, __builtin_offsetof(struct tcp_header, checksum));
}

/* A copy of the packet at hand goes to the client: as if the server's pod had sent it (with `mark`), or, where the client
 * is the pod whose turn it is, straight to that. 0 or a drop reason. */
INLINE int own_copy_to_client(struct __sk_buff *skb, const struct pkt_ctx *ctx, u32 mark)
{
	bool sends = ctx->direction == DIR_EGRESS;
	struct endpoint_info *pod = endpoint_by_id(sends ? ctx->src_endpoint : ctx->dst_endpoint);
	u32 before = skb->mark;
	u8 mac[12];
	int failed;

	if (!pod)
		return DROP_EP_NOT_READY;
	__builtin_memcpy(mac, sends ? pod->mac : pod->node_mac, 6);
	__builtin_memcpy(mac + 6, sends ? pod->node_mac : pod->mac, 6);
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
		return DROP_ERROR_WRITING_TO_PACKET;
	skb->mark = sends ? OWN_PACKET_MARK : mark;
	failed = bpf_clone_redirect(skb, pod->ifindex, sends ? 0 : BPF_F_INGRESS);
	skb->mark = before;
	return failed ? DROP_ERROR_WRITING_TO_PACKET : 0;
}

/* The packet at hand becomes a reset of the server's socket, whose next byte is `expected`: it goes on in the packet's
 * place. 0 or a drop reason. */
INLINE int own_reset_server(struct __sk_buff *skb, struct own_tcp *own, struct pkt_ctx *ctx, u32 expected)
{
	struct own_segment segment = { .flags = TCP_RST | TCP_ACK, .seq = expected, .ack = ctx->tcp_ack };
	u32 length = own_tcp_header(own, ctx, own_l4(&own->packet, ctx), &segment);
	int reason = own_replace(skb, own, ctx, &segment, length);

	if (!reason && bpf_skb_store_bytes(skb, 0, own->mac, sizeof(own->mac), 0))
		reason = DROP_ERROR_WRITING_TO_PACKET;
	/* The next turn is about this packet. */
	ctx->tcp_flags = segment.flags;
	ctx->tcp_seq = expected;
	ctx->payload_len = 0;
	return reason;
}

/* Make the packet at hand one of `length` bytes of payload. 0 or a drop reason. */
INLINE int own_shorten(struct __sk_buff *skb, struct own_tcp *own, struct pkt_ctx *ctx, u32 length)
{
	u64 header = ctx->payload_off - ctx->l4_off, total = header + length;
	u8 *l4 = own_l4(&own->packet, ctx);
	struct tcp_header *tcp = (void *)l4;
	u32 l3;

	total &= OWN_PACKET_BYTES - 1;
	if (header < sizeof(*tcp) || total < header || total > OWN_CUT_MAX + 60)
		return DROP_ERROR_WRITING_TO_PACKET;
	__builtin_memset(l4, 0, 440);
	if (bpf_skb_load_bytes(skb, ctx->l4_off, l4, total))
		return DROP_INVALID_PACKET_DROPPED;
	tcp->flags &= ~TCP_FIN;
	tcp->checksum = 0xffff;
	l3 = own_build_l3(&own->packet, ctx, &ctx->saddr, &ctx->daddr, total);
	ctx->tcp_flags &= ~TCP_FIN;
	ctx->payload_len = length;
	return own_store(skb, &own->packet, ctx, l3, total, __builtin_offsetof(struct tcp_header, checksum));
}

/* A client goes on after it was answered with an end: packets that were on their way, its acknowledgement, its FIN. They
 * are taken in the server's name. `next` is the client's next byte, the answer and its FIN are [answer, end).
 * False: nothing is to be said. True: `segment`; with TCP_FIN it is the answer once more, which was lost. */
INLINE bool own_closing(const struct pkt_ctx *ctx, u32 *next, u32 answer, u32 end, struct own_segment *segment)
{
	u32 length = ctx->payload_len + (ctx->tcp_flags & TCP_FIN ? 1 : 0), last = ctx->tcp_seq + length;

	if (!length)
		return false;
	if ((s32)(ctx->tcp_seq - *next) <= 0 && (s32)(last - *next) > 0)
		*next = last;
	segment->to_client = true;
	segment->flags = TCP_ACK;
	segment->seq = end;
	segment->ack = *next;
	if (ctx->tcp_ack == answer) {
		segment->flags = TCP_PSH | TCP_ACK | TCP_FIN;
		segment->seq = answer;
	}
	return true;
}
