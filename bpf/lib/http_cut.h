/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Requests that came in one packet, of which a later one is refused: what stands before it goes to the server in a packet
 * of its own, as if the client had sent no more. The client's TCP sends the rest again, and it is answered when the
 * server has answered what was before: when the client has all that the server said, and no more has come for a while. */
#pragma once
#include "http_event.h"
#include "http_refuse.h"

#define HTTP_CUT_MAX 368 /* bytes before the refused request: what fits with the longest TCP header into an own packet */
#define HTTP_QUIET 100000000ULL /* ns */

/* How much of the packet stands before the request that is refused; 0: nothing, or too much. */
INLINE u32 http_before(const struct pkt_ctx *ctx, const struct http_work *w)
{
	u32 length = w->flow.now.line_seq - ctx->tcp_seq;

	if (!w->present || w->comparing || w->probing || !http_unreported(&w->flow.now))
		return 0;
	return length < ctx->payload_len && length <= HTTP_CUT_MAX ? length : 0;
}

/* The server is not yet through with what was before. */
INLINE bool http_answers_first(const struct pkt_ctx *ctx, const struct http_conn *conn)
{
	if (!conn || likely(!conn->cut))
		return false;
	return !conn->heard_ns || (s32)(ctx->tcp_ack - conn->heard_seq) < 0 || ctx->now_ns - conn->heard_ns < HTTP_QUIET;
}

/* Make the packet at hand one of `length` bytes of payload. 0 or a drop reason. */
INLINE int http_shorten(struct __sk_buff *skb, struct http_work *w, struct pkt_ctx *ctx, u32 length)
{
	u64 header = ctx->payload_off - ctx->l4_off, total = header + length;
	u8 *l4 = own_l4(&w->own, ctx);
	struct tcp_header *tcp = (void *)l4;
	u32 l3;

	total &= OWN_PACKET_BYTES - 1;
	if (header < sizeof(*tcp) || total < header || total > HTTP_CUT_MAX + 60)
		return DROP_ERROR_WRITING_TO_PACKET;
	__builtin_memset(l4, 0, 440);
	if (bpf_skb_load_bytes(skb, ctx->l4_off, l4, total))
		return DROP_INVALID_PACKET_DROPPED;
	tcp->flags &= ~TCP_FIN;
	tcp->checksum = 0xffff;
	l3 = own_build_l3(&w->own, ctx, &ctx->saddr, &ctx->daddr, total);
	ctx->tcp_flags &= ~TCP_FIN;
	ctx->payload_len = length;
	return own_store(skb, &w->own, ctx, l3, total, __builtin_offsetof(struct tcp_header, checksum));
}

/* Let pass what stands before the refused request. Returns a verdict. */
INLINE int http_cut(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, struct http_conn *conn, u32 length)
{
	struct http_flow *flow = &w->flow;
	int reason;

	http_next_message(&flow->now);
	flow->now.seq = ctx->tcp_seq + length;
	flow->strikes = 0;
	if (!flow->marked) {
		flow->mark_seq = flow->now.seq;
		flow->mark_digest = http_digest(flow);
		flow->marked = 1;
	}
	reason = http_shorten(skb, w, ctx, length);
	if (reason)
		return -reason;
	if (!conn || !http_publish(w, conn))
		return -DROP_HTTP_OUT_OF_ORDER;
	conn->cut = 1;
	conn->heard_ns = 0;
	if (w->asked.waiting | w->asked.pipelined)
		http_expect(ctx, w, conn);
	return HTTP_PASSES;
}
