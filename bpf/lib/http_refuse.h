/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How the inspection of a packet ends: it passes and the connection's state is published, it waits for TCP to send it
 * again, or the connection is refused. Nothing is published before a packet is inspected to its end. */
#pragma once
#include "deliver.h"
#include "http_answer.h"
#include "http_sequence.h"
#include "tailcall.h"

/* A verdict of the HTTP programs: the packet goes on. */
#define HTTP_PASSES 0x100

/* On to the pod, or, from the sender's turn, to wherever it goes. Returns a verdict for `finish`. */
INLINE int http_onward(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	if (ctx->direction == DIR_INGRESS)
		return deliver(skb, ctx);
	tailcalls.call(skb, TAIL_FORWARD);
	return -DROP_MISSED_TAIL_CALL;
}

/* Nothing is refused on this connection: its requests are only told. */
INLINE bool http_watching(const struct pkt_ctx *ctx)
{
	return ctx->l7_ruleset == HTTP_VISIBLE;
}

/* Something passes that was not read, or not as policy reads it: no policy that comes later may trust what is known of
 * the connection. */
INLINE void http_distrust(const struct pkt_ctx *ctx)
{
	struct http_conn *conn = http_conns.lookup(&ctx->key);
	struct ct_entry *entry;

	if (conn)
		conn->watched = 1;
	if (!(ctx->tcp_flags & TCP_SYN))
		return;
	entry = ct.lookup(&ctx->key); /* of what a SYN carries there is no state yet */
	if (entry)
		entry->flags |= CT_F_UNREAD;
}

/* Publish the flow, also of a connection of which nothing was known. */
INLINE bool http_record(struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_conn *conn;
	u32 zero = 0;

	if (w->present)
		return http_publish(w, http_conns.lookup(&ctx->key));
	conn = http_fresh.lookup(&zero);
	if (!conn)
		return false;
	__builtin_memset(conn, 0, sizeof(*conn));
	conn->version = ((u64)bpf_get_prandom_u32() << 32) | (bpf_get_prandom_u32() & ~1U);
	conn->flow = w->flow;
	conn->watched = http_watching(ctx);
	conn->acked = w->acked;
	return !http_conns.update(&ctx->key, conn);
}

/* Refuse the connection, or, while no HTTP policy holds and it is merely followed, stop following it. */
INLINE int http_refuse(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, int reason)
{
	if (!ctx->l7_ruleset || http_watching(ctx)) {
		w->flow.mode = HTTP_UNKNOWN;
		if (w->present && !http_publish(w, http_conns.lookup(&ctx->key)))
			return -DROP_HTTP_OUT_OF_ORDER;
		return HTTP_PASSES;
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

INLINE int http_pass(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, struct http_conn *conn)
{
	if (!http_publish(w, conn))
		return -DROP_HTTP_OUT_OF_ORDER;
	return HTTP_PASSES;
}

/* A repetition that nothing explains. */
INLINE int http_strike(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, struct http_conn *conn)
{
	if (w->flow.strikes >= HTTP_STRIKES) {
		w->expected = w->acked; /* what passed beyond seems to be lost */
		return http_refuse(skb, ctx, w, DROP_HTTP_OUT_OF_ORDER);
	}
	http_publish(w, conn);
	return -DROP_HTTP_OUT_OF_ORDER;
}

/* Follow a connection from here on, if this looks like a request. Only for telling: where a request really begins is not
 * known, which is why such a connection is never trusted by policy. */
INLINE bool http_adopt(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, const struct http_config *cfg)
{
	struct http_conn *conn;
	u8 first = 0;
	int i;

	if (!cfg || bpf_skb_load_bytes(skb, ctx->payload_off, &first, 1) || first < 'A' || first > 'Z')
		return false;
	__builtin_memset(&w->flow, 0, sizeof(w->flow));
	w->flow.now.seq = ctx->tcp_seq;
	w->flow.now.phase = HTTP_PHASE_START;
	w->flow.body_start = ctx->tcp_seq;
	w->flow.body_end = ctx->tcp_seq;
#pragma unroll
	for (i = 0; i < HTTP_HOLES; i++)
		w->flow.holes[i].end = ctx->tcp_seq;
	w->flow.grammar = cfg->grammar;
	w->flow.hash = ((u64)bpf_get_prandom_u32() << 32) | bpf_get_prandom_u32();
	w->acked = ctx->tcp_seq;
	if (!http_record(ctx, w))
		return false;
	conn = http_conns.lookup(&ctx->key);
	if (!conn)
		return false;
	conn->watched = 1;
	w->present = 1;
	w->version = http_version(conn);
	return !(w->version & 1);
}

/* Data on a connection of which nothing is known: it is older than the policy, its entry was evicted, or it did not
 * speak HTTP while it needed not to. Where a request begins in it only the server knows, so nothing of it may pass:
 * "looks like a request" would let a client hide one in what the server takes for a body. If the packet is a request
 * that policy denies, the client is told so; otherwise both sides are reset, and the client tries again. */
INLINE int http_stranger(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_config *cfg = http_configuration();

	if (http_watching(ctx)) {
		if (!http_adopt(skb, ctx, w, cfg))
			return HTTP_PASSES;
		tailcalls.call(skb, TAIL_HTTP_PARSE);
		return -DROP_MISSED_TAIL_CALL;
	}
	if (!ctx->l7_ruleset || !cfg || (w->audit && w->present))
		return HTTP_PASSES;
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
