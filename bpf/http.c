/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* HTTP policy: the programs behind TAIL_HTTP_*. Packets from clients whose egress verdict, or to pods whose ingress
 * verdict, carries a rule set come here after their L4 policy, and go on, or are answered in the server's place
 * (http_deny.c). Where both do, they come twice, each time with a state of its own.
 *
 * http_entry: what does the connection expect, may this packet be inspected now; then the same as
 * http_parse: some hundred bytes of the grammar -> http_parse until the packet is done -> deliver | http_deny | drop */
#include "lib/http_hook.h"
#include "lib/http_inspect.h"

#define TCP_URG 32

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

/* No data; but a FIN ends what the server has read so far, and there are servers that take a head which ends there for
 * a complete one. So it passes only where the server reads it behind something that was decided. */
INLINE int http_without_data(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	const struct http_parse *now = &w->flow.now;

	if (!(ctx->tcp_flags & TCP_FIN) || !w->present || w->flow.mode != HTTP_FOLLOWED || (s32)(ctx->tcp_seq - w->acked) < 0)
		return HTTP_PASSES;
	if (!ctx->l7_ruleset || http_watching(ctx)) {
		if (ctx->tcp_seq != now->seq || http_unreported(now))
			http_distrust(ctx);
		return HTTP_PASSES;
	}
	if (ctx->tcp_seq != now->seq)
		return -DROP_HTTP_OUT_OF_ORDER;
	w->expected = now->seq;
	return http_unreported(now) ? http_refuse(skb, ctx, w, DROP_HTTP_MALFORMED) : HTTP_PASSES;
}

/* Could the packet be a request that needs not be read? */
INLINE bool http_may_recall(const struct pkt_ctx *ctx, const struct http_work *w, const struct http_conn *conn,
			    const struct http_config *cfg)
{
	return conn && cfg && ctx->l7_ruleset && ctx->payload_len && ctx->payload_len <= HTTP_BUFFER && !w->audit &&
	       (!conn->watched || http_watching(ctx)) && !http_check_segment(ctx);
}

INLINE int http_enter(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_config *cfg = http_configuration();
	struct http_conn *conn;
	int reason;

	if (ctx->tcp_flags & TCP_SYN) { /* data on a SYN would not be in anybody's stream yet */
		if (ctx->payload_len && !ctx->l7_ruleset)
			http_distrust(ctx);
		return ctx->payload_len && ctx->l7_ruleset ? -DROP_HTTP_OUT_OF_ORDER : HTTP_PASSES;
	}
	conn = http_conns.lookup(&ctx->key);
	if (ctx->tcp_flags & TCP_RST) {
		if (conn)
			http_settle(ctx, conn, false, 0);
		return HTTP_PASSES;
	}
	if (conn && http_closes(ctx, conn, HTTP_FIN_CLIENT))
		return HTTP_PASSES;
	if (conn && conn->tunnel)
		return HTTP_PASSES;
	w->present = !!conn;
	w->pos = 0;
	w->limit = ctx->payload_len;
	w->comparing = 0;
	w->probing = 0;
	w->asked.waiting = HTTP_WAITS_NOT;
	w->asked.pipelined = 0;
	w->audit = !!(ctx->flags & CTX_F_AUDIT);
	w->buffer_at = 0;
	w->buffer_have = 0;
	w->memo = HTTP_NOWHERE;
	w->memorable = 0;
	w->masked = 0;
	w->expected = ctx->tcp_seq;
	if (http_may_recall(ctx, w, conn, cfg)) {
		reason = http_recall(skb, ctx, w, conn, cfg);
		if (reason)
			return reason;
	}
	if (conn && !http_copy(w, conn))
		return -DROP_HTTP_OUT_OF_ORDER;
	if (conn && (w->flow.mode == HTTP_ANSWERED || w->flow.mode == HTTP_RESET)) {
		w->answer = HTTP_ANSWER_AFTER;
		tailcalls.call(skb, TAIL_HTTP_DENY);
		return -DROP_MISSED_TAIL_CALL;
	}
	reason = http_check_segment(ctx);
	if (reason && http_watching(ctx))
		return -reason; /* http_finish knows */
	if (reason)
		return !w->audit && (ctx->l7_ruleset || !conn) ? -reason : http_refuse(skb, ctx, w, reason);
	if (!ctx->payload_len)
		return http_without_data(skb, ctx, w);
	if (!conn || !cfg || (conn->watched && !http_watching(ctx)) || w->flow.mode == HTTP_UNKNOWN || w->flow.grammar != cfg->grammar)
		return http_stranger(skb, ctx, w);
	w->expected = w->flow.now.seq;
	if (w->flow.strikes >= HTTP_STRIKES)
		return http_refuse(skb, ctx, w, DROP_HTTP_TOO_LARGE);
	reason = http_admit(w, ctx->tcp_seq, ctx->payload_len);
	if (reason == HTTP_PASS)
		return HTTP_PASSES;
	if (reason == HTTP_PASS_CHANGED)
		return http_pass(skb, ctx, w, conn);
	if (reason == HTTP_STRIKE)
		return http_strike(skb, ctx, w, conn);
	if (reason)
		return -reason;
	return http_inspect(skb, ctx, w, conn);
}

/* What is only watched passes, whatever is thought of it. */
INLINE int http_finish(struct __sk_buff *skb, struct pkt_ctx *ctx, int verdict)
{
	if (unlikely(verdict < 0) && http_watching(ctx)) {
		http_distrust(ctx);
		verdict = HTTP_PASSES;
	}
	return finish(skb, ctx, verdict == HTTP_PASSES ? http_onward(skb, ctx) : verdict);
}

int http_entry(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct http_work *w = http_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return http_finish(skb, ctx, http_enter(skb, ctx, w));
}

int http_parse(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct http_work *w = http_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return http_finish(skb, ctx, http_inspect(skb, ctx, w, http_conns.lookup(&ctx->key)));
}
