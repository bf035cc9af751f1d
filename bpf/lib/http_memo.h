/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Heads that were read before. Clients say the same again and again: the same bytes by the same rules come to the same
 * verdict, so they are compared, a word at a time, instead of being read.
 *
 * Remembered is a request without a body that came in a packet of its own and was allowed, when it has come a second time.
 * A place says what follows from its bytes alone; what the connection has to be like is asked before (http_is_idle). */
#pragma once
#include "http_event.h"
#include "http_refuse.h"

#define HTTP_MEMO_PLACES 128 /* per CPU; a power of two */

struct http_memo {
	u64 tag; /* of the head that has the place, or has asked for it */
	u64 line_hash;
	u32 length; /* of the head; 0: none yet */
	u32 generation;
	u32 grammar;
	u16 ruleset;
	u16 path_len;
	u8 http_version;
	u8 method_len;
	u8 upgrade;
	u8 pad;
	u16 traced_at; /* where in the head a traceparent is blanked out: whatever it is; 0: nowhere */
	u8 pad2[2];
	u8 method[HTTP_METHOD_MAX];
	u8 path[HTTP_PATH_MAX];
	u8 head[HTTP_BUFFER] __attribute__((aligned(8))); /* zeros behind it up to a full block */
};
_Static_assert(sizeof(struct http_memo) == 704, "http_memo");

PERCPU_MAP(http_memos, struct http_memo, HTTP_MEMO_PLACES);

/* Nothing is under way: the packet, in order, begins a request, and the server has all that came before. */
INLINE bool http_is_idle(const struct pkt_ctx *ctx, const struct http_conn *conn, const struct http_config *cfg)
{
	const struct http_flow *flow = &conn->flow;

	return flow->mode == HTTP_FOLLOWED && flow->now.phase == HTTP_PHASE_START && !flow->now.begun &&
	       flow->now.seq == ctx->tcp_seq && (s32)(conn->acked - ctx->tcp_seq) >= 0 && !flow->strikes &&
	       flow->grammar == cfg->grammar && !conn->asked.waiting && !conn->asked.pipelined &&
	       (s32)(ctx->tcp_seq - flow->body_end) <= (s32)HTTP_RANGE_MAX;
}

#define HTTP_BLOCK 32 /* bytes that are looked at together */

/* The offsets of eight bytes each that are the 55 of a traceparent. */
#define HTTP_TRACE_WORD(i) ((i) < 6 ? 8 * (i) : HTTP_TRACE_LENGTH - 8)
#define HTTP_TRACE_WORDS 7

INLINE u16 *http_trace_hint(struct http_work *w, const struct pkt_ctx *ctx)
{
	u64 index = ctx->payload_len ^ ((u32)ctx->l7_ruleset << 3);

	asm volatile("%0 &= %1" : "+r"(index) : "i"(HTTP_TRACE_HINTS - 1));
	return &w->trace_hints[index];
}

/* Zeros for the traceparent at `at` of HTTP_BUFFER bytes. */
INLINE void http_blank(u8 *head, u32 at)
{
	u64 index = at;
	int i;

	asm volatile("%0 &= %1" : "+r"(index) : "i"(HTTP_BUFFER - 1));
	if (index >= HTTP_BUFFER - HTTP_TRACE_LENGTH)
		return;
#pragma unroll
	for (i = 0; i < HTTP_TRACE_WORDS; i++)
		*(u64 *)&head[index + HTTP_TRACE_WORD(i)] = 0;
}

/* Blank out the traceparent in the buffer, if there is a good one at `at`: what the head comes to does not depend on it.
 * Where it is, is a guess after the last head of this length; a wrong one costs time and nothing else. */
INLINE void http_mask_trace(struct http_work *w, u32 at)
{
	u64 index = at;
	int i;

	if (at + HTTP_TRACE_LENGTH >= w->buffer_have)
		return;
	asm volatile("%0 &= %1" : "+r"(index) : "i"(HTTP_BUFFER - 1));
	if (w->buffer[index + HTTP_TRACE_LENGTH] != '\r' || !http_trace_read(&w->buffer[index], &w->trace))
		return;
	w->masked = at;
#pragma unroll
	for (i = 0; i < HTTP_TRACE_WORDS; i++)
		w->masked_text[i] = *(u64 *)&w->buffer[index + HTTP_TRACE_WORD(i)];
	http_blank(w->buffer, at);
}

/* As it was: the head has to be read. */
INLINE void http_unmask_trace(struct http_work *w)
{
	u64 index = w->masked;
	int i;

	asm volatile("%0 &= %1" : "+r"(index) : "i"(HTTP_BUFFER - 1));
#pragma unroll
	for (i = 0; i < HTTP_TRACE_WORDS; i++)
		*(u64 *)&w->buffer[index + HTTP_TRACE_WORD(i)] = w->masked_text[i];
}

/* The whole payload in the buffer, zeros behind it; its tag in w->tag. */
INLINE bool http_load_head(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct http_work *w, const struct http_config *cfg)
{
	u64 length = ctx->payload_len - 1, tag;
	u32 at, hint;

	asm volatile("%0 &= %1" : "+r"(length) : "i"(HTTP_BUFFER - 1));
	length += 1;
	if (bpf_skb_load_bytes(skb, ctx->payload_off, w->buffer, length))
		return false;
	w->buffer_have = length;
	__builtin_memset(&w->buffer[length], 0, HTTP_BLOCK);
	hint = *http_trace_hint(w, ctx);
	if (unlikely(hint) && cfg->traces)
		http_mask_trace(w, hint);
	tag = http_mix(cfg->seed ^ length, ((u64)cfg->generation << 32) | ctx->l7_ruleset);
#pragma clang loop unroll(disable)
	for (at = 0; at < HTTP_BUFFER; at += HTTP_BLOCK) {
		const u64 *word = (const u64 *)&w->buffer[at];

		if (at >= length)
			break;
		tag = http_mix(tag, word[0] * 0x87c37b91114253d5ULL + word[1] * 0x4cf5ad432745937fULL +
					    word[2] * 0xff51afd7ed558ccdULL + word[3] * 0xc4ceb9fe1a85ec53ULL);
	}
	w->tag = tag;
	asm volatile("" ::: "memory");
	return true;
}

/* Is this head what the place remembers? */
INLINE bool http_is_remembered(const struct pkt_ctx *ctx, const struct http_work *w, const struct http_memo *memo,
			       const struct http_config *cfg)
{
	u32 at, have = w->buffer_have;

	if (memo->tag != w->tag || memo->length != ctx->payload_len || memo->generation != cfg->generation ||
	    memo->ruleset != ctx->l7_ruleset || memo->grammar != cfg->grammar || memo->traced_at != w->masked)
		return false;
#pragma clang loop unroll(disable)
	for (at = 0; at < HTTP_BUFFER; at += HTTP_BLOCK) {
		const u64 *word = (const u64 *)&w->buffer[at], *known = (const u64 *)&memo->head[at];

		if (at >= have)
			break;
		if ((word[0] ^ known[0]) | (word[1] ^ known[1]) | (word[2] ^ known[2]) | (word[3] ^ known[3]))
			return false;
	}
	return true;
}

/* What the walk would have left. */
INLINE void http_repeat(struct pkt_ctx *ctx, const struct http_work *w, struct http_conn *conn, const struct http_memo *memo)
{
	struct http_asked *asked = &conn->asked;
	struct http_flow *flow = &conn->flow;
	u32 first = ctx->tcp_seq;

	flow->snap = flow->now;
	flow->snap_hash = flow->hash;
	flow->snapped = 1;
	flow->marked = 1;
	flow->now.seq = first + ctx->payload_len;
	flow->now.generation = memo->generation;
	flow->now.ruleset = memo->ruleset;
	flow->hash = http_mix(flow->hash, memo->line_hash);
	flow->mark_seq = flow->now.seq;
	flow->mark_digest = http_digest(flow);
	asked->complete_ns = precise_now(ctx);
	asked->rule_id = ctx->rule_id;
	asked->src_identity = ctx->src_identity;
	asked->policy_revision = ctx->policy_revision;
	asked->service_id = ctx->service_id;
	asked->ruleset = memo->ruleset;
	asked->path_len = memo->path_len;
	asked->http_version = memo->http_version;
	asked->method_len = memo->method_len;
	asked->match_type = ctx->match_type;
	asked->audited = 0;
	asked->upgrade = memo->upgrade;
	asked->line_seq = first;
	asked->traced = !!w->masked;
	if (unlikely(w->masked))
		conn->asked_trace = w->trace;
	__builtin_memcpy(conn->asked_method, memo->method, HTTP_METHOD_MAX);
	__builtin_memcpy(conn->asked_path, memo->path, HTTP_PATH_MAX);
}

/* A request that needs not be read. 0: it has to be; the buffer holds it. */
INLINE int http_recall(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, struct http_conn *conn,
		       const struct http_config *cfg)
{
	u64 version = http_version(conn);
	struct http_memo *memo;

	if ((version & 1) || !http_is_idle(ctx, conn, cfg) || !http_load_head(skb, ctx, w, cfg))
		return 0;
	w->memo = w->tag & (HTTP_MEMO_PLACES - 1);
	memo = http_memos.lookup(&w->memo);
	if (!memo || !http_is_remembered(ctx, w, memo, cfg)) {
		if (unlikely(w->masked))
			http_unmask_trace(w);
		return 0;
	}
	if (!http_lock(conn, version))
		return -DROP_HTTP_OUT_OF_ORDER;
	http_repeat(ctx, w, conn, memo);
	http_unlock(conn, version);
	http_wait(&conn->asked);
	return HTTP_PASSES;
}

/* The head in the buffer was read and allowed: give it a place if it has come before. */
INLINE void http_remember(const struct pkt_ctx *ctx, struct http_work *w)
{
	struct http_memo *memo = http_memos.lookup(&w->memo);
	u32 at;

	if (!memo || !w->asked.waiting)
		return;
	if (unlikely(w->traced_at != w->masked)) { /* the next such head will have it blanked out */
		*http_trace_hint(w, ctx) = w->traced_at;
		return;
	}
	if (unlikely(w->asked.traced) && !w->traced_at)
		return;
	if (memo->tag != w->tag) {
		memo->tag = w->tag;
		memo->length = 0;
		return;
	}
	memo->length = 0; /* until it is complete */
#pragma clang loop unroll(disable)
	for (at = 0; at < HTTP_BUFFER; at += HTTP_BLOCK) {
		if (at >= w->buffer_have)
			break;
		__builtin_memcpy(&memo->head[at], &w->buffer[at], HTTP_BLOCK);
	}
	memo->line_hash = w->line_hash;
	memo->generation = w->flow.now.generation;
	memo->grammar = w->flow.grammar;
	memo->ruleset = w->asked.ruleset;
	memo->path_len = w->asked.path_len;
	memo->http_version = w->asked.http_version;
	memo->method_len = w->asked.method_len;
	memo->upgrade = w->asked.upgrade;
	__builtin_memcpy(memo->method, w->method, HTTP_METHOD_MAX);
	__builtin_memcpy(memo->path, w->path, HTTP_PATH_MAX);
	memo->traced_at = w->traced_at;
	if (unlikely(w->traced_at))
		http_blank(memo->head, w->traced_at);
	memo->length = ctx->payload_len;
}
