/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Bytes of a request stream -> grammar table -> policy table. One byte costs one table look-up and, in a target, one
 * step of the policy automaton. All state lives in the per-CPU work entry: what the verifier cannot see as a constant
 * it does not follow separately. */
#pragma once
#include "drop_reasons.h"
#include "http_grammar.h"
#include "http_state.h"
#include "http_tables.h"
#include "http_trace.h"

#define HTTP_METHOD_BYTES 20
#define HTTP_VERSION_BYTES 10 /* " HTTP/1.1" and CR */
#define HTTP_HEAD_BYTES 65536
#define HTTP_LENGTH_DIGITS 15
#define HTTP_CHUNK_DIGITS 12
#define HTTP_LINE_END bpf_htons(0x0d0a)
#define HTTP_RANGE_MAX (1U << 30) /* of a body that sequence numbers can tell from what was before */

/* What an action led to, beside the drop reasons (> 100). */
enum http_step {
	HTTP_MORE = 0,
	HTTP_HEAD_DONE = 1,
	HTTP_MESSAGE_DONE = 2,
};

INLINE u64 http_mix(u64 hash, u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
	return hash ^ (hash >> 29);
}

INLINE void http_feed(struct http_work *w, const struct http_table *table, u8 c)
{
	w->flow.now.state = http_next(table, w->flow.now.state, c);
	w->flow.now.hash = http_mix(w->flow.now.hash, c);
}

/* What the stream has said so far, as far as it matters: request lines, hosts, and where in the grammar it is. */
INLINE u64 http_digest(const struct http_flow *flow)
{
	const struct http_parse *now = &flow->now;
	u64 digest = http_mix(http_mix(flow->hash, now->hash), now->remain);

	return http_mix(digest, now->phase | ((u64)now->flags << 8) | ((u64)now->digits << 16) |
					((u64)now->escape << 24) | ((u64)now->begun << 32));
}

INLINE void http_next_message(struct http_parse *now)
{
	now->hash = 0;
	now->escape = 0;
	now->remain = 0;
	now->head = 0;
	now->path_len = 0;
	now->phase = HTTP_PHASE_START;
	now->flags = 0;
	now->digits = 0;
	now->method_len = 0;
	now->begun = 0;
	now->method_saved = 0;
	now->path_saved = 0;
	now->root = 0;
	now->decided = 0;
	now->met = 0;
}

/* The first byte of a request, number `at`, is at hand: from now on it is decided by these rules. */
INLINE void http_begin(struct http_parse *now, const struct http_config *cfg, u32 ruleset, u32 at)
{
	struct http_table *table = http_table_of(cfg->generation);

	now->generation = cfg->generation;
	now->ruleset = ruleset;
	now->state = table ? http_start(table, ruleset) : HTTP_DENY_ALL;
	now->begun = HTTP_BEGUN_RULES;
	now->hash = cfg->seed;
	now->line_seq = at;
	now->flags |= HTTP_F_LINE;
}

/* `count` bytes of the buffer are done. */
INLINE void http_advance(struct http_work *w, u32 count)
{
	w->flow.now.head += count;
	w->pos += count;
	w->buffer_at += count;
}

INLINE void http_range(struct http_work *w, u32 from, u64 length)
{
	w->flow.body_start = from;
	w->flow.body_end = from + (length > HTTP_RANGE_MAX ? HTTP_RANGE_MAX : (u32)length);
}

/* The request line is complete; `at` is its LF. */
INLINE int http_act_line(struct http_work *w, struct http_parse *now, const struct http_table *table, u32 at)
{
	now->flags |= HTTP_F_DECIDED;
	if (!now->path_len)
		now->path_len = at - HTTP_VERSION_BYTES - now->path_seq;
	if (likely(now->state & HTTP_ACCEPT))
		return HTTP_MORE;
	/* What is left are rules that look at fields; not at Host, where an absolute target names one beside it. */
	http_feed(w, table, now->flags & HTTP_F_ABSOLUTE ? '\r' : '\n');
	if (!w->audit && (now->state & (HTTP_STATES - 1)) == HTTP_DENY_ALL)
		return w->comparing ? HTTP_MORE : DROP_HTTP_DENIED;
	now->flags |= HTTP_F_PENDING;
	now->root = now->state;
	return HTTP_MORE;
}

/* A line of the head has ended, where rules look at fields: what it meets counts, unless there was such a line before. */
INLINE void http_act_field(struct http_work *w, const struct http_table *table)
{
	struct http_parse *now = &w->flow.now;
	u16 decided, again;

	http_feed(w, table, '\n');
	decided = http_next(table, now->state, HTTP_RESULT_DECIDED);
	again = now->decided & decided;
	now->met = (now->met | http_next(table, now->state, HTTP_RESULT_MET)) & ~again;
	now->decided |= decided;
	now->state = http_next(table, now->state, HTTP_RESULT_ROOT);
}

/* The head is complete: do its fields meet what one of the rules asks for? */
INLINE bool http_fields_meet(const struct http_parse *now, const struct http_table *table)
{
	u16 met = now->met, wanted;
	int i;

	if (!(now->flags & HTTP_F_HOST))
		met |= http_next(table, now->root, HTTP_ROOT_HOSTLESS);
#pragma clang loop unroll(disable)
	for (i = HTTP_ROOT_ALTERNATIVES; i < HTTP_ROOT_COLUMNS; i++) {
		wanted = http_next(table, now->root, i);
		if (!wanted)
			return false;
		if ((met & wanted) == wanted)
			return true;
	}
	return false;
}

/* A field that frames the body: once, and never beside another one. */
INLINE int http_act_framing(struct http_parse *now, u8 flag, u8 refused_with)
{
	if (now->flags & refused_with)
		return DROP_HTTP_MALFORMED;
	now->flags |= flag;
	now->remain = 0;
	now->digits = 0;
	return HTTP_MORE;
}

INLINE int http_act_digit(struct http_parse *now, u64 base, u8 value, u8 limit)
{
	if (now->digits >= limit)
		return DROP_HTTP_MALFORMED;
	now->digits += 1;
	now->remain = now->remain * base + value;
	return HTTP_MORE;
}

/* What an escape stands for: looked up like a byte of its own, and either decoded or kept as it was sent. */
INLINE int http_act_escape(struct http_work *w, const struct http_table *table, const struct http_grammar *grammar, u8 c)
{
	struct http_parse *now = &w->flow.now;
	u8 decoded = (http_hex(now->escape) << 4) | http_hex(c);
	u32 next = http_grammar_next(grammar, now->phase, decoded);
	u32 action = next >> 8;

	now->phase = next;
	if (action == HTTP_ACT_FEED) {
		http_feed(w, table, decoded);
		return HTTP_MORE;
	}
	if (action != HTTP_ACT_ESCAPE_KEPT)
		return DROP_HTTP_MALFORMED;
	http_feed(w, table, '%');
	http_feed(w, table, now->escape);
	http_feed(w, table, c);
	return HTTP_MORE;
}

INLINE int http_act_method_end(struct http_work *w, const struct http_table *table, u32 at)
{
	struct http_parse *now = &w->flow.now;
	u32 length = at - now->line_seq;

	if (length > HTTP_METHOD_BYTES)
		return DROP_HTTP_MALFORMED;
	now->method_len = length;
	http_feed(w, table, ' ');
	return HTTP_MORE;
}

/* Behind the target nearly always comes this, and then the fields. */
INLINE int http_act_target_end(struct http_work *w, const struct http_table *table, u32 at)
{
	u64 index = w->buffer_at;

	if (w->buffer_have < index + 10)
		return HTTP_MORE;
	asm volatile("%0 &= %1" : "+r"(index) : "i"(HTTP_BUFFER - 1));
	if (*(u64 *)&w->buffer[index] != HTTP_VERSION_11 || *(u16 *)&w->buffer[index + 8] != HTTP_LINE_END)
		return HTTP_MORE;
	http_advance(w, 10);
	w->flow.now.phase = HTTP_PHASE_FIELD;
	return http_act_line(w, &w->flow.now, table, at + 10);
}

/* What byte `c`, number `at` of the stream, asks for beside the next state. */
INLINE int http_act(struct http_work *w, const struct http_table *table, const struct http_grammar *grammar, u32 action,
		    u8 c, u32 at)
{
	struct http_parse *now = &w->flow.now;

	switch (action) {
	case HTTP_ACT_EMPTY_LINE:
		http_next_message(now);
		return HTTP_MORE;
	case HTTP_ACT_METHOD_END:
		now->path_seq = at + 1;
		return http_act_method_end(w, table, at);
	case HTTP_ACT_TARGET:
		now->path_seq = at;
		now->path_saved = 0;
		http_feed(w, table, c);
		return HTTP_MORE;
	case HTTP_ACT_ESCAPE_FIRST:
		now->escape = c;
		return HTTP_MORE;
	case HTTP_ACT_ESCAPE_SECOND:
		return http_act_escape(w, table, grammar, c);
	case HTTP_ACT_QUERY:
		now->path_len = at - now->path_seq;
		http_feed(w, table, c);
		return HTTP_MORE;
	case HTTP_ACT_TARGET_END:
		return http_act_target_end(w, table, at);
	case HTTP_ACT_ABSOLUTE:
		now->flags |= HTTP_F_ABSOLUTE;
		return HTTP_MORE;
	case HTTP_ACT_ROOT:
		now->path_seq = at;
		now->path_saved = 0;
		http_feed(w, table, '/');
		return HTTP_MORE;
	case HTTP_ACT_LINE_10:
		now->flags |= HTTP_F_VERSION_10;
		return http_act_line(w, now, table, at);
	case HTTP_ACT_LINE_11:
		return http_act_line(w, now, table, at);
	case HTTP_ACT_HOST_NAME:
		if (now->flags & HTTP_F_HOST)
			return DROP_HTTP_MALFORMED;
		now->flags |= HTTP_F_HOST;
		if (now->flags & HTTP_F_PENDING)
			http_feed(w, table, ':');
		else /* nothing depends on it */
			now->phase = HTTP_PHASE_VALUE;
		return HTTP_MORE;
	case HTTP_ACT_LINE_END:
		http_act_field(w, table);
		return HTTP_MORE;
	case HTTP_ACT_FOREIGN:
		http_feed(w, table, 0x7f);
		return HTTP_MORE;
	case HTTP_ACT_UPGRADE_NAME:
		if (now->flags & HTTP_F_PENDING)
			http_feed(w, table, c);
		now->begun |= now->begun & HTTP_BEGUN_UPGRADE ? HTTP_BEGUN_CONFUSED : HTTP_BEGUN_UPGRADE;
		return HTTP_MORE;
	case HTTP_ACT_UPGRADE_VALUE:
		if (now->flags & HTTP_F_PENDING)
			http_feed(w, table, c);
		now->begun |= HTTP_BEGUN_WEBSOCKET;
		return HTTP_MORE;
	case HTTP_ACT_TRACE_NAME:
		if (now->flags & HTTP_F_PENDING)
			http_feed(w, table, ':');
		http_trace_begins(w, at + 1);
		return HTTP_MORE;
	case HTTP_ACT_LENGTH_NAME:
		if (now->flags & HTTP_F_PENDING)
			http_feed(w, table, ':');
		return http_act_framing(now, HTTP_F_LENGTH, HTTP_F_LENGTH | HTTP_F_CODING);
	case HTTP_ACT_LENGTH_DIGIT:
		if (now->flags & HTTP_F_PENDING)
			http_feed(w, table, c);
		return http_act_digit(now, 10, c - '0', HTTP_LENGTH_DIGITS);
	case HTTP_ACT_CODING_NAME:
		if (now->flags & HTTP_F_PENDING)
			http_feed(w, table, ':');
		return http_act_framing(now, HTTP_F_CODING, HTTP_F_LENGTH | HTTP_F_CODING | HTTP_F_VERSION_10);
	case HTTP_ACT_HEAD_END:
		return HTTP_HEAD_DONE;
	case HTTP_ACT_CHUNK_DIGIT:
		return http_act_digit(now, 16, http_hex(c), HTTP_CHUNK_DIGITS);
	case HTTP_ACT_CHUNK_LINE:
		now->digits = 0;
		now->head = 0;
		now->phase = now->remain ? HTTP_PHASE_CHUNK_DATA : HTTP_PHASE_TRAILER;
		if (now->remain)
			http_range(w, at + 1, now->remain);
		return HTTP_MORE;
	case HTTP_ACT_MESSAGE_END:
		return HTTP_MESSAGE_DONE;
	case HTTP_ACT_REFUSE_TLS:
		return DROP_HTTP_TLS;
	case HTTP_ACT_REFUSE_HTTP2:
		return DROP_HTTP_HTTP2;
	}
	return DROP_HTTP_MALFORMED;
}

#define HTTP_BYTES 64 /* looked at one by one in a step */
#define HTTP_WORDS 64 /* of eight bytes, skipped in a step */

/* Eight bytes without a control character: none below 0x20, none 0x7f (it may report one where there is none). */
INLINE bool http_is_text(u64 word)
{
	u64 low = (word - HTTP_EACH(0x20)) & ~word, del = word ^ HTTP_EACH(0x7f);

	del = (del - HTTP_EACH(1)) & ~del;
	return !((low | del) & HTTP_EACH(0x80));
}

/* Inside a value: eight bytes at a time while they are text. What is left of it is walked over. */
INLINE void http_skip_value(struct http_work *w)
{
	u32 at = w->buffer_at, have = w->buffer_have, i;
	u64 index;

#pragma clang loop unroll(disable)
	for (i = 0; i < HTTP_WORDS; i++) {
		if (at + 8 > have)
			break;
		index = at;
		asm volatile("%0 &= %1" : "+r"(index) : "i"(HTTP_BUFFER - 1));
		if (!http_is_text(*(u64 *)&w->buffer[index]))
			break;
		at += 8;
	}
	http_advance(w, at - w->buffer_at);
	asm volatile("" ::: "memory");
}

/* Walk on in the buffer until it is used up or long enough (NONE), or a byte asks for more than the next state: its
 * action, with the byte in *byte. */
INLINE u32 http_walk(struct http_work *w, const struct http_table *table, const struct http_grammar *grammar, u8 *byte)
{
	struct http_parse *now = &w->flow.now;
	u32 phase = now->phase, state = now->state, at = w->buffer_at, have = w->buffer_have;
	u32 view = now->flags & HTTP_F_PENDING ? HTTP_ATTENTIVE : 0;
	u32 next, action = HTTP_ACT_NONE, i;
	u64 hash = now->hash, index;
	u8 c = 0;

#pragma clang loop unroll(disable)
	for (i = 0; i < HTTP_BYTES; i++) {
		if (at >= have)
			break;
		asm volatile("" ::: "memory");
		index = at;
		asm volatile("%0 &= %1" : "+r"(index) : "i"(HTTP_BUFFER - 1));
		c = w->buffer[index];
		at++;
		next = http_grammar_next(grammar, phase | view, c);
		phase = next & 0xff;
		action = next >> 8;
		if (action - HTTP_ACT_NONE > HTTP_ACT_FEED - HTTP_ACT_NONE)
			break;
		if (action == HTTP_ACT_FEED) {
			state = http_next(table, state, c);
			hash = http_mix(hash, c);
		}
		action = HTTP_ACT_NONE;
	}
	http_advance(w, at - w->buffer_at);
	now->phase = phase;
	now->state = state;
	now->hash = hash;
	/* Through memory, where the verifier forgets how often it went round. */
	w->byte = c;
	w->action = action;
	asm volatile("" ::: "memory");
	*byte = w->byte;
	return w->action;
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
