/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Requests that came in one packet, of which a later one is refused: what stands before it goes to the server in a packet
 * of its own, as if the client had sent no more. The client's TCP sends the rest again, and it is answered when the
 * server has answered what was before: when the client has all that the server said, and no more has come for a while. */
#pragma once
#include "http_event.h"
#include "http_refuse.h"

#define HTTP_QUIET 100000000ULL /* ns */

/* How much of the packet stands before the request that is refused; 0: nothing, or too much. */
INLINE u32 http_before(const struct pkt_ctx *ctx, const struct http_work *w)
{
	u32 length = w->flow.now.line_seq - ctx->tcp_seq;

	if (!w->present || w->comparing || w->probing || !http_unreported(&w->flow.now))
		return 0;
	return length < ctx->payload_len && length <= OWN_CUT_MAX ? length : 0;
}

/* The server is not yet through with what was before. */
INLINE bool http_answers_first(const struct pkt_ctx *ctx, const struct http_conn *conn)
{
	if (!conn || likely(!conn->cut))
		return false;
	return !conn->heard_ns || (s32)(ctx->tcp_ack - conn->heard_seq) < 0 || ctx->now_ns - conn->heard_ns < HTTP_QUIET;
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
	reason = own_shorten(skb, &w->own, ctx, length);
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
