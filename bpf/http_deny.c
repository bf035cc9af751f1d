/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* HTTP policy says no: answer the client, reset the server; and what the client still sends after that. */
#include "lib/http_cut.h"
#include "lib/http_event.h"
#include "lib/http_refuse.h"

INLINE bool http_is_head(const struct http_work *w)
{
	return w->flow.now.method_len == 4 && *(u32 *)w->method == bpf_htonl(0x48454144);
}

/* A request that its line alone refuses: which trace does it belong to? Its fields are read on, as far as the buffer goes. */
INLINE void http_search_trace(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_grammar *grammar = http_grammar_table();
	u32 from = ctx->tcp_seq + w->pos, next, i;
	u64 index;

	if (!grammar || w->flow.now.phase != HTTP_PHASE_FIELD || w->pos >= ctx->payload_len)
		return;
	w->limit = ctx->payload_len;
	if (http_load(skb, ctx, w))
		return;
#pragma clang loop unroll(disable)
	for (i = 0; i < HTTP_BUFFER; i++) {
		index = w->buffer_at;
		if (index >= w->buffer_have)
			break;
		asm volatile("%0 &= %1" : "+r"(index) : "i"(HTTP_BUFFER - 1));
		next = http_grammar_next(grammar, w->flow.now.phase, w->buffer[index]);
		w->buffer_at++;
		w->flow.now.phase = next;
		next >>= 8;
		if (next == HTTP_ACT_TRACE_NAME)
			http_trace_begins(w, from + w->buffer_at);
		if (next == HTTP_ACT_REFUSE || next == HTTP_ACT_HEAD_END)
			break;
		asm volatile("" ::: "memory");
	}
	w->pos += w->buffer_at;
}

/* Deny: the client gets a complete answer, the server never sees the request complete. */
INLINE int http_deny_now(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	bool forbidden = w->answer == HTTP_ANSWER_FORBIDDEN;
	struct http_flow *flow = &w->flow;
	struct own_segment segment = {
		.to_client = true,
		.flags = forbidden ? TCP_PSH | TCP_ACK | TCP_FIN : TCP_RST | TCP_ACK,
		.payload = forbidden ? (http_is_head(w) ? HTTP_403_HEAD_LENGTH : HTTP_403_LENGTH) : 0,
		.seq = ctx->tcp_ack,
		.ack = ctx->tcp_seq + ctx->payload_len + (ctx->tcp_flags & TCP_FIN ? 1 : 0),
	};
	int reason;

	flow->mode = forbidden ? HTTP_ANSWERED : HTTP_RESET;
	flow->now.seq = segment.ack;
	flow->now.flags &= ~HTTP_F_LINE;
	flow->answer_seq = segment.seq;
	flow->answer_end = segment.seq + segment.payload + 1;
	if (!http_record(ctx, w))
		return -DROP_HTTP_OUT_OF_ORDER;
	if (forbidden)
		count_packet(ctx->direction, w->reason, ctx->ip_len);
	reason = http_send_to_client(skb, w, ctx, &segment);
	if (!reason)
		reason = own_reset_server(skb, &w->own, ctx, w->expected);
	return reason ? -reason : HTTP_PASSES;
}

/* The client goes on after its answer: packets that were on their way, its acknowledgement, its FIN. They are taken
 * in the server's name, without an event: the request had one. */
INLINE int http_deny_after(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_flow *flow = &w->flow;
	struct own_segment segment = {};
	u32 before = flow->now.seq;
	int reason;

	count_packet(ctx->direction, DROP_HTTP_CLOSED, ctx->ip_len);
	if (!own_closing(ctx, &flow->now.seq, flow->answer_seq, flow->answer_end, &segment))
		return TC_ACT_SHOT;
	if (flow->now.seq != before)
		http_publish(w, http_conns.lookup(&ctx->key));
	if (flow->mode == HTTP_RESET) {
		segment.flags = TCP_RST;
		segment.seq = ctx->tcp_ack;
	} else if (segment.flags & TCP_FIN) {
		segment.payload = flow->answer_end - flow->answer_seq - 1 == HTTP_403_HEAD_LENGTH ? HTTP_403_HEAD_LENGTH :
												    HTTP_403_LENGTH;
	}
	reason = http_send_to_client(skb, w, ctx, &segment);
	return reason ? -reason : TC_ACT_SHOT;
}

/* Audit: nothing is known of what follows on this connection, and nothing of it is refused. */
INLINE int http_let_go(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	w->flow.mode = HTTP_UNKNOWN;
	return http_record(ctx, w) ? HTTP_PASSES : -DROP_HTTP_OUT_OF_ORDER;
}

int http_deny(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct http_work *w = http_working();
	struct http_conn *conn;
	u32 length;
	int reason;

	if (!ctx || !w)
		return TC_ACT_SHOT;
	if (w->answer == HTTP_ANSWER_AUDIT && !w->present)
		__builtin_memset(&w->flow, 0, sizeof(w->flow)); /* it is another connection's */
	if ((w->answer == HTTP_ANSWER_FORBIDDEN || w->answer == HTTP_ANSWER_AUDIT) && !w->flow.traces)
		http_search_trace(skb, ctx, w);
	reason = w->answer == HTTP_ANSWER_AUDIT ? 0 : own_note(skb, &w->own, ctx);
	if (reason)
		return finish(skb, ctx, -reason);
	if (w->answer == HTTP_ANSWER_AFTER)
		return finish(skb, ctx, http_deny_after(skb, ctx, w));
	conn = http_conns.lookup(&ctx->key);
	if (w->answer == HTTP_ANSWER_FORBIDDEN) {
		length = http_before(ctx, w);
		if (length) {
			reason = http_cut(skb, ctx, w, conn, length);
			return finish(skb, ctx, reason == HTTP_PASSES ? http_onward(skb, ctx) : reason);
		}
		if (http_answers_first(ctx, conn))
			return finish(skb, ctx, -DROP_HTTP_OUT_OF_ORDER);
	}
	if (conn)
		http_settle(ctx, conn, false, 0); /* what was asked before is not answered any more */
	if (w->asked.waiting)
		http_emit(ctx, &w->asked, w->method, w->path, &w->trace, false, 0, 0);
	if (w->answer == HTTP_ANSWER_FORBIDDEN || w->answer == HTTP_ANSWER_AUDIT) {
		http_note(skb, ctx, w, w->reason);
		http_emit(ctx, &w->asked, w->method, w->path, &w->trace, false, w->answer == HTTP_ANSWER_AUDIT ? 0 : 403, w->reason);
	} else
		drop_packet(skb, ctx, w->reason); /* event and count; the packet still becomes the server's reset */
	reason = w->answer == HTTP_ANSWER_AUDIT ? http_let_go(skb, ctx, w) : http_deny_now(skb, ctx, w);
	return finish(skb, ctx, reason == HTTP_PASSES ? http_onward(skb, ctx) : reason);
}
