/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet's bytes, step by step: over bodies, and through the grammar from one action to the next. */
#pragma once
#include "http_event.h"
#include "http_memo.h"
#include "http_refuse.h"

#define HTTP_STEPS 16 /* actions, buffers or bodies in one run */

/* The packet has another request: the one before is told without its answer. */
INLINE void http_pipelined(struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_conn *conn;

	if (likely(!w->asked.waiting))
		return;
	conn = http_conns.lookup(&ctx->key);
	if (conn)
		http_settle(ctx, conn, false, 0);
	http_emit(ctx, &w->asked, w->method, w->path, &w->trace, false, 0, 0);
	w->asked.waiting = HTTP_WAITS_NOT;
	w->asked.pipelined = 1;
}

/* A head is complete: what follows it? 0 or a drop reason. */
INLINE int http_head_done(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, const struct http_table *table)
{
	struct http_parse *now = &w->flow.now;
	bool denied = unlikely(now->flags & HTTP_F_PENDING) && !http_fields_meet(now, table);

	if (denied && !w->audit)
		return DROP_HTTP_DENIED;
	if (w->probing)
		return DROP_HTTP_NO_STATE;
	if (!w->comparing && ctx->l7_ruleset) {
		http_pipelined(ctx, w);
		http_note(skb, ctx, w, denied ? DROP_HTTP_DENIED : 0);
		w->asked.waiting = HTTP_WAITS;
	}
	w->memorable = now->line_seq == ctx->tcp_seq && w->pos == ctx->payload_len && !now->remain &&
		       !(now->flags & HTTP_F_CODING) && !denied;
	w->line_hash = now->hash;
	w->flow.hash = http_mix(w->flow.hash, now->hash);
	now->hash = 0;
	now->flags &= ~HTTP_F_LINE;
	now->digits = 0;
	if (now->flags & HTTP_F_CODING) {
		now->phase = HTTP_PHASE_CHUNK_SIZE;
		now->remain = 0;
		now->head = 0;
	} else if (now->remain) {
		now->phase = HTTP_PHASE_BODY;
		http_range(w, ctx->tcp_seq + w->pos, now->remain);
	} else {
		http_next_message(now);
	}
	return 0;
}

/* Over a body, or through the grammar to the next byte that asks for an action. 0 or a drop reason. */
INLINE int http_step(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, struct http_config *cfg,
		     struct http_grammar *grammar)
{
	struct http_parse *now = &w->flow.now;
	struct http_table *table;
	u32 left = w->limit - w->pos, action;
	int step;
	u8 c;

	if (http_in_data(now)) {
		if (left > now->remain)
			left = now->remain;
		http_skip(w, ctx->tcp_seq + w->pos, left);
		w->pos += left;
		w->buffer_at += left;
		if (w->buffer_at >= w->buffer_have)
			return 0;
	}
	if (!now->begun) {
		http_begin(now, cfg, ctx->l7_ruleset, ctx->tcp_seq + w->pos);
		if (!w->comparing)
			w->flow.traces = HTTP_TRACES_NONE;
	}
	table = http_table_of(now->generation);
	if (!table)
		return DROP_MISSED_TAIL_CALL;
	if (w->buffer_at >= w->buffer_have) {
		step = http_load(skb, ctx, w);
		if (step)
			return step;
	}
	if (now->phase == HTTP_PHASE_VALUE && !(now->flags & HTTP_F_PENDING))
		http_skip_value(w);
	action = http_walk(w, table, grammar, &c);
	if (now->head > HTTP_HEAD_BYTES)
		return DROP_HTTP_TOO_LARGE;
	if (action == HTTP_ACT_NONE || action == HTTP_ACT_VALUE)
		return 0;
	step = http_act(w, table, grammar, action, c, ctx->tcp_seq + w->pos - 1);
	if (step == HTTP_HEAD_DONE)
		return http_head_done(skb, ctx, w, table);
	if (step == HTTP_MESSAGE_DONE) {
		http_next_message(now);
		return 0;
	}
	return step;
}

/* The request began with rules whose table is being overwritten. */
INLINE bool http_outdated(const struct http_parse *now, const struct http_config *cfg)
{
	return now->begun && (s32)(now->generation - cfg->oldest) < 0 &&
	       (!(now->flags & HTTP_F_DECIDED) || (now->flags & HTTP_F_PENDING));
}

/* Out of tail calls. TCP sends less at a time the next time; where that does not help, http_enter ends the connection
 * (no tail call is left for that either). */
INLINE int http_overlong(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_conn *conn = http_conns.lookup(&ctx->key);

	if (!conn || !http_copy(w, conn))
		return -DROP_HTTP_TOO_LARGE;
	w->flow.strikes += HTTP_STRIKES_IN_PIECES;
	http_publish(w, conn);
	return -DROP_HTTP_TOO_LARGE;
}

/* All bytes up to w->limit are inspected. */
INLINE int http_inspected(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, struct http_conn *conn)
{
	struct http_flow *flow = &w->flow;

	if (w->comparing) {
		if (!http_compared(w, ctx->tcp_seq + w->limit)) {
			flow->strikes += HTTP_STRIKES_IN_PIECES;
			return http_strike(skb, ctx, w, conn);
		}
		if (w->limit < ctx->payload_len) {
			w->limit = ctx->payload_len;
			w->buffer_have = 0;
			tailcalls.call(skb, TAIL_HTTP_PARSE);
			return http_overlong(skb, ctx, w);
		}
	} else {
		if (http_unreported(&flow->now)) {
			http_pipelined(ctx, w);
			http_collect(skb, ctx, w, ctx->tcp_seq + w->pos);
			if (unlikely(flow->traces == HTTP_TRACES_ONE))
				http_collect_trace(skb, ctx, w, ctx->tcp_seq + w->pos);
		}
		flow->now.seq = ctx->tcp_seq + ctx->payload_len;
		if (!flow->marked) {
			flow->mark_seq = flow->now.seq;
			flow->mark_digest = http_digest(flow);
			flow->marked = 1;
		}
	}
	/* As http_without_data says. */
	if ((ctx->tcp_flags & TCP_FIN) && ctx->l7_ruleset &&
	    (http_unreported(&flow->now) || ctx->tcp_seq + ctx->payload_len != flow->now.seq))
		return http_refuse(skb, ctx, w, DROP_HTTP_MALFORMED);
	flow->strikes = 0;
	if (!http_publish(w, conn))
		return -DROP_HTTP_OUT_OF_ORDER;
	if (unlikely(w->memo != HTTP_NOWHERE) && w->memorable)
		http_remember(ctx, w);
	if (conn && w->asked.waiting | w->asked.pipelined)
		http_expect(ctx, w, conn);
	return HTTP_PASSES;
}

INLINE int http_inspect(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, struct http_conn *conn)
{
	struct http_config *cfg = http_configuration();
	struct http_grammar *grammar = http_grammar_table();
	int reason = 0, i;

	if (!cfg || !grammar)
		return -DROP_MISSED_TAIL_CALL;
	if (http_outdated(&w->flow.now, cfg) && !w->comparing)
		return http_refuse(skb, ctx, w, DROP_HTTP_DENIED);
#pragma clang loop unroll(disable)
	for (i = 0; i < HTTP_STEPS; i++) {
		if (w->pos >= w->limit)
			break;
		reason = http_step(skb, ctx, w, cfg, grammar);
		if (reason)
			break;
	}
	if (reason && w->comparing) {
		http_compared(w, w->held.seq - 1); /* restores; not the same in any case */
		w->flow.strikes += HTTP_STRIKES_IN_PIECES;
		return http_strike(skb, ctx, w, conn);
	}
	if (w->probing && reason != DROP_HTTP_DENIED && (reason || w->pos >= w->limit))
		reason = DROP_HTTP_NO_STATE;
	if (reason)
		return http_refuse(skb, ctx, w, reason);
	if (w->pos >= w->limit)
		return http_inspected(skb, ctx, w, conn);
	tailcalls.call(skb, TAIL_HTTP_PARSE);
	return http_overlong(skb, ctx, w);
}
