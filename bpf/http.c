/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* HTTP policy: the programs behind TAIL_HTTP_*. Packets from clients to a pod whose ingress verdict carries a rule set
 * come here after their L4 policy, and leave to the pod, or are answered in its place.
 *
 * http_entry: what does the connection expect, may this packet be inspected now; then the same as
 * http_parse: some hundred bytes of the grammar -> http_parse until the packet is done -> deliver | http_deny | drop
 * http_deny:  answer the client, reset the server; and what the client still sends after that
 *
 * Nothing is published before a packet is inspected to its end, so that a packet passes whole or not at all. */
#include "lib/deliver.h"
#include "lib/http_answer.h"
#include "lib/http_event.h"
#include "lib/http_hook.h"
#include "lib/http_sequence.h"
#include "lib/tailcall.h"

#define TCP_URG 32
#define HTTP_STEPS 16 /* actions, buffers or bodies in one run */

/* Refuse the connection, or, while no HTTP policy holds and it is merely followed, stop following it. */
INLINE int http_refuse(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, int reason)
{
	if (!ctx->l7_ruleset) {
		w->flow.mode = HTTP_UNKNOWN;
		if (w->present && !http_publish(w, &ctx->key))
			return -DROP_HTTP_OUT_OF_ORDER;
		return deliver(skb, ctx);
	}
	w->reason = reason;
	w->answer = HTTP_ANSWER_FORBIDDEN;
	if (reason == DROP_HTTP_TLS || reason == DROP_HTTP_HTTP2 || reason == DROP_HTTP_NO_STATE ||
	    reason == DROP_HTTP_OUT_OF_ORDER)
		w->answer = HTTP_ANSWER_RESET;
	if (w->audit)
		w->answer = HTTP_ANSWER_AUDIT;
	tailcalls.call(skb, TAIL_HTTP_DENY);
	return -DROP_MISSED_TAIL_CALL;
}

INLINE int http_pass(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	if (!http_publish(w, &ctx->key))
		return -DROP_HTTP_OUT_OF_ORDER;
	return deliver(skb, ctx);
}

/* A repetition that nothing explains. */
INLINE int http_strike(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	if (w->flow.strikes >= HTTP_STRIKES) {
		w->expected = w->acked; /* what passed beyond seems to be lost */
		return http_refuse(skb, ctx, w, DROP_HTTP_OUT_OF_ORDER);
	}
	http_publish(w, &ctx->key);
	return -DROP_HTTP_OUT_OF_ORDER;
}

/* Data on a connection of which nothing is known: it is older than the policy, its entry was evicted, or it did not
 * speak HTTP while it needed not to. Where a request begins in it only the server knows, so nothing of it may pass:
 * "looks like a request" would let a client hide one in what the server takes for a body. If the packet is a request
 * that policy denies, the client is told so; otherwise both sides are reset, and the client tries again. */
INLINE int http_stranger(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_config *cfg = http_configuration();

	if (!ctx->l7_ruleset || !cfg || (w->audit && w->present))
		return deliver(skb, ctx);
	if (w->audit)
		return http_refuse(skb, ctx, w, DROP_HTTP_NO_STATE);
	__builtin_memset(&w->flow, 0, sizeof(w->flow));
	w->flow.now.seq = ctx->tcp_seq;
	w->flow.now.phase = HTTP_PHASE_START;
	w->flow.grammar = cfg->grammar;
	w->expected = ctx->tcp_seq;
	w->probing = 1;
	tailcalls.call(skb, TAIL_HTTP_PARSE);
	return -DROP_MISSED_TAIL_CALL;
}

/* Segments that TCP's rules let mean more than one thing. */
INLINE int http_check_segment(const struct pkt_ctx *ctx)
{
	if (ctx->flags & CTX_F_FRAGMENT)
		return DROP_IP_FRAGMENTATION_NOT_SUPPORTED;
	/* IP options and extension headers: answers are built without. */
	if (ctx->l4_off != L3_OFF + (ctx->family == 4 ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header)))
		return DROP_INVALID_PACKET_DROPPED;
	/* An urgent byte vanishes from the stream, even when it is only announced. */
	if (ctx->tcp_flags & TCP_URG)
		return DROP_HTTP_MALFORMED;
	if (ctx->payload_len && !(ctx->tcp_flags & TCP_ACK))
		return DROP_HTTP_MALFORMED;
	return 0;
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
	if (!w->comparing && ctx->l7_ruleset)
		http_emit(skb, ctx, w, 0, denied ? DROP_HTTP_DENIED : 0);
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

/* Fill the buffer with what comes next. */
INLINE int http_load(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	u32 left = w->limit - w->pos;
	u64 length;

	/* The verifier wants to see 1..HTTP_BUFFER in the very register that it is given. */
	length = (left > HTTP_BUFFER ? HTTP_BUFFER : left) - 1;
	asm volatile("%0 &= %1" : "+r"(length) : "i"(HTTP_BUFFER - 1));
	length += 1;
	w->buffer_at = 0;
	w->buffer_have = length;
	return bpf_skb_load_bytes(skb, ctx->payload_off + w->pos, w->buffer, length) ? DROP_INVALID_PACKET_DROPPED : 0;
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
	if (!now->begun)
		http_begin(now, cfg, ctx->l7_ruleset, ctx->tcp_seq + w->pos);
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
	http_publish(w, &ctx->key);
	return -DROP_HTTP_TOO_LARGE;
}

/* All bytes up to w->limit are inspected. */
INLINE int http_inspected(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_flow *flow = &w->flow;

	if (w->comparing) {
		if (!http_compared(w, ctx->tcp_seq + w->limit)) {
			flow->strikes += HTTP_STRIKES_IN_PIECES;
			return http_strike(skb, ctx, w);
		}
		if (w->limit < ctx->payload_len) {
			w->limit = ctx->payload_len;
			w->buffer_have = 0;
			tailcalls.call(skb, TAIL_HTTP_PARSE);
			return http_overlong(skb, ctx, w);
		}
	} else {
		if (http_unreported(&flow->now))
			http_collect(skb, ctx, w, ctx->tcp_seq + w->pos);
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
	return http_pass(skb, ctx, w);
}

INLINE int http_inspect(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
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
		return http_strike(skb, ctx, w);
	}
	if (w->probing && reason != DROP_HTTP_DENIED && (reason || w->pos >= w->limit))
		reason = DROP_HTTP_NO_STATE;
	if (reason)
		return http_refuse(skb, ctx, w, reason);
	if (w->pos >= w->limit)
		return http_inspected(skb, ctx, w);
	tailcalls.call(skb, TAIL_HTTP_PARSE);
	return http_overlong(skb, ctx, w);
}

/* No data; but a FIN ends what the server has read so far, and there are servers that take a head which ends there for
 * a complete one. So it passes only where the server reads it behind something that was decided. */
INLINE int http_without_data(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	const struct http_parse *now = &w->flow.now;

	if (!(ctx->tcp_flags & TCP_FIN) || !w->present || w->flow.mode != HTTP_FOLLOWED || !ctx->l7_ruleset ||
	    (s32)(ctx->tcp_seq - w->acked) < 0)
		return deliver(skb, ctx);
	if (ctx->tcp_seq != now->seq)
		return -DROP_HTTP_OUT_OF_ORDER;
	w->expected = now->seq;
	return http_unreported(now) ? http_refuse(skb, ctx, w, DROP_HTTP_MALFORMED) : deliver(skb, ctx);
}

INLINE int http_enter(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_config *cfg = http_configuration();
	struct http_conn *conn;
	int reason;

	if (ctx->tcp_flags & TCP_SYN) /* data on a SYN would not be in anybody's stream yet */
		return ctx->payload_len && ctx->l7_ruleset ? -DROP_HTTP_OUT_OF_ORDER : deliver(skb, ctx);
	if (ctx->tcp_flags & TCP_RST)
		return deliver(skb, ctx);
	conn = http_conns.lookup(&ctx->key);
	w->present = !!conn;
	w->pos = 0;
	w->limit = ctx->payload_len;
	w->comparing = 0;
	w->probing = 0;
	w->audit = !!(ctx->flags & CTX_F_AUDIT);
	w->buffer_at = 0;
	w->buffer_have = 0;
	w->expected = ctx->tcp_seq;
	if (conn && !http_copy(w, conn))
		return -DROP_HTTP_OUT_OF_ORDER;
	if (conn && (w->flow.mode == HTTP_ANSWERED || w->flow.mode == HTTP_RESET)) {
		w->answer = HTTP_ANSWER_AFTER;
		tailcalls.call(skb, TAIL_HTTP_DENY);
		return -DROP_MISSED_TAIL_CALL;
	}
	reason = http_check_segment(ctx);
	if (reason)
		return !w->audit && (ctx->l7_ruleset || !conn) ? -reason : http_refuse(skb, ctx, w, reason);
	if (!ctx->payload_len)
		return http_without_data(skb, ctx, w);
	if (!conn || !cfg || w->flow.mode == HTTP_UNKNOWN || w->flow.grammar != cfg->grammar)
		return http_stranger(skb, ctx, w);
	w->expected = w->flow.now.seq;
	if (w->flow.strikes >= HTTP_STRIKES)
		return http_refuse(skb, ctx, w, DROP_HTTP_TOO_LARGE);
	reason = http_admit(w, ctx->tcp_seq, ctx->payload_len);
	if (reason == HTTP_PASS)
		return deliver(skb, ctx);
	if (reason == HTTP_PASS_CHANGED)
		return http_pass(skb, ctx, w);
	if (reason == HTTP_STRIKE)
		return http_strike(skb, ctx, w);
	if (reason)
		return -reason;
	return http_inspect(skb, ctx, w);
}

int http_entry(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct http_work *w = http_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return finish(skb, ctx, http_enter(skb, ctx, w));
}

int http_parse(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct http_work *w = http_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return finish(skb, ctx, http_inspect(skb, ctx, w));
}

/* Remember that the connection is over, before anybody is told. */
INLINE bool http_record(struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_conn *conn;
	u32 zero = 0;

	if (w->present)
		return http_publish(w, &ctx->key);
	conn = http_fresh.lookup(&zero);
	if (!conn)
		return false;
	__builtin_memset(conn, 0, sizeof(*conn));
	conn->version = ((u64)bpf_get_prandom_u32() << 32) | (bpf_get_prandom_u32() & ~1U);
	conn->flow = w->flow;
	return !http_conns.update(&ctx->key, conn);
}

INLINE bool http_is_head(const struct http_work *w)
{
	return w->flow.now.method_len == 4 && *(u32 *)w->method == bpf_htonl(0x48454144);
}

/* Deny: the client gets a complete answer, the server never sees the request complete. */
INLINE int http_deny_now(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	bool forbidden = w->answer == HTTP_ANSWER_FORBIDDEN;
	struct http_flow *flow = &w->flow;
	struct http_segment segment = {
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
		count_packet(DIR_INGRESS, w->reason, ctx->ip_len);
	reason = http_send_to_client(skb, w, ctx, &segment);
	if (!reason)
		reason = http_reset_server(skb, w, ctx);
	return reason ? -reason : deliver(skb, ctx);
}

/* The client goes on after its answer: packets that were on their way, its acknowledgement, its FIN. They are taken
 * in the server's name, without an event: the request had one. */
INLINE int http_deny_after(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	u32 length = ctx->payload_len + (ctx->tcp_flags & TCP_FIN ? 1 : 0), end = ctx->tcp_seq + length;
	struct http_flow *flow = &w->flow;
	struct http_segment segment = { .to_client = true, .flags = TCP_ACK, .seq = flow->answer_end };
	int reason;

	count_packet(DIR_INGRESS, DROP_HTTP_CLOSED, ctx->ip_len);
	if (!length)
		return TC_ACT_SHOT;
	if ((s32)(ctx->tcp_seq - flow->now.seq) <= 0 && (s32)(end - flow->now.seq) > 0) {
		flow->now.seq = end;
		http_publish(w, &ctx->key);
	}
	segment.ack = flow->now.seq;
	if (flow->mode == HTTP_RESET) {
		segment.flags = TCP_RST;
		segment.seq = ctx->tcp_ack;
	} else if (ctx->tcp_ack == flow->answer_seq) { /* the answer was lost */
		segment.flags = TCP_PSH | TCP_ACK | TCP_FIN;
		segment.seq = flow->answer_seq;
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
	return http_record(ctx, w) ? deliver(skb, ctx) : -DROP_HTTP_OUT_OF_ORDER;
}

int http_deny(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct http_work *w = http_working();
	int reason;

	if (!ctx || !w)
		return TC_ACT_SHOT;
	if (w->answer == HTTP_ANSWER_AUDIT && !w->present)
		__builtin_memset(&w->flow, 0, sizeof(w->flow)); /* it is another connection's */
	reason = w->answer == HTTP_ANSWER_AUDIT ? 0 : http_note_packet(skb, w, ctx);
	if (reason)
		return finish(skb, ctx, -reason);
	if (w->answer == HTTP_ANSWER_AFTER)
		return finish(skb, ctx, http_deny_after(skb, ctx, w));
	if (w->answer == HTTP_ANSWER_FORBIDDEN || w->answer == HTTP_ANSWER_AUDIT)
		http_emit(skb, ctx, w, w->answer == HTTP_ANSWER_AUDIT ? 0 : 403, w->reason);
	else
		drop_packet(skb, ctx, w->reason); /* event and count; the packet still becomes the server's reset */
	return finish(skb, ctx, w->answer == HTTP_ANSWER_AUDIT ? http_let_go(skb, ctx, w) : http_deny_now(skb, ctx, w));
}
