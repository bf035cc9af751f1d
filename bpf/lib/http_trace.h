/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The trace that a request belongs to: its `traceparent` (W3C Trace Context, Level 2, 3.2), as
 * `version-traceid-parentid-flags` in 55 lower-case characters. The grammar says where the field's value begins; what it
 * says is read when the head is complete. It never counts for the verdict: what is not well-formed, or comes twice, is
 * no trace. */
#pragma once
#include "http_grammar.h"
#include "http_state.h"

#define HTTP_TRACE_LENGTH 55
#define HTTP_TRACE_BLANKS 8 /* around the value, at most: the field's first HTTP_TRACE_RAW bytes are looked at */
#define HTTP_TRACE_VERSION_NONE 0xff

/* Eight bytes, the first one in the lowest bits. */
INLINE u64 http_text(const u8 *at)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	return __builtin_bswap64(*(const u64 *)at);
#else
	return *(const u64 *)at;
#endif
}

/* Eight characters -> the four bytes that they spell, the first in the lowest bits. *bad gets bits unless all are of
 * 0-9a-f. Per character: n is the low half, plus 9 where bit 6 says that it is a letter; then n + 6 reaches 16 for letters
 * and for nothing else, and n does not. */
INLINE u32 http_hex_word(u64 text, u64 *bad)
{
	u64 letter = (text >> 6) & HTTP_EACH(1), low = text & HTTP_EACH(15), n = low + 9 * letter;

	*bad |= (text ^ (HTTP_EACH(0x30) + low + 0x30 * letter)) | (n & HTTP_EACH(16)) |
		(((n + HTTP_EACH(6)) ^ (letter << 4)) & HTTP_EACH(16));
	n = ((n << 4) | (n >> 8)) & 0x00ff00ff00ff00ffULL;
	n = (n | (n >> 8)) & 0x0000ffff0000ffffULL;
	return n | (n >> 16);
}

INLINE void http_put_word(u8 *at, u32 value)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	value = __builtin_bswap32(value);
#endif
	*(u32 *)at = value;
}

/* The 55 characters from `text` on, whatever follows them. False: they are no traceparent. */
INLINE bool http_trace_read(const u8 *text, struct http_trace *trace)
{
	u64 bad = (text[2] ^ '-') | (text[35] ^ '-') | (text[52] ^ '-');
	u64 outer = HTTP_EACH('0') << 32;
	u32 ends, some;

	if (bad)
		return false;
	outer |= text[0] | ((u32)text[1] << 8) | ((u32)text[53] << 16) | ((u64)text[54] << 24);
	ends = http_hex_word(outer, &bad);
	http_put_word(trace->trace_id, http_hex_word(http_text(text + 3), &bad));
	http_put_word(trace->trace_id + 4, http_hex_word(http_text(text + 11), &bad));
	http_put_word(trace->trace_id + 8, http_hex_word(http_text(text + 19), &bad));
	http_put_word(trace->trace_id + 12, http_hex_word(http_text(text + 27), &bad));
	http_put_word(trace->parent_id, http_hex_word(http_text(text + 36), &bad));
	http_put_word(trace->parent_id + 4, http_hex_word(http_text(text + 44), &bad));
	trace->trace_flags = ends >> 8;
	some = *(u64 *)trace->trace_id || *(u64 *)(trace->trace_id + 8);
	return !bad && some && *(u64 *)trace->parent_id && (ends & 0xff) != HTTP_TRACE_VERSION_NONE;
}

/* `at` is behind the colon of a traceparent. */
INLINE void http_trace_begins(struct http_work *w, u32 at)
{
	struct http_flow *flow = &w->flow;
	u32 offset = at - flow->now.line_seq;

	if (w->comparing) /* it was told when it came first */
		return;
	flow->traces = flow->traces | offset >> 16 ? HTTP_TRACES_MANY : HTTP_TRACES_ONE;
	flow->trace_at = offset;
	flow->trace_saved = 0;
}

INLINE bool http_is_blank(u8 c)
{
	return c == ' ' || c == '\t';
}

/* The first byte of w->trace_raw from `at` on that is no blank. Through memory, where the verifier forgets which. */
INLINE u32 http_trace_text(struct http_work *w, u32 at)
{
	u64 index;
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < HTTP_TRACE_BLANKS; i++) {
		index = at + i;
		asm volatile("%0 &= 63" : "+r"(index));
		if (!http_is_blank(w->trace_raw[index]))
			break;
	}
	w->byte = i;
	asm volatile("" ::: "memory");
	return at + w->byte;
}

/* Is `at` of w->trace_raw the end of the value? Versions that we do not know may go on. */
INLINE bool http_trace_ends(struct http_work *w, u32 at)
{
	u64 end = at, version = at - HTTP_TRACE_LENGTH;
	u8 c;

	asm volatile("%0 &= 63" : "+r"(end));
	asm volatile("%0 &= 63" : "+r"(version));
	c = w->trace_raw[end];
	if (c == '-')
		return w->trace_raw[version] != '0' || w->trace_raw[version + 1] != '0';
	end = http_trace_text(w, at);
	if (end >= HTTP_TRACE_RAW)
		return false;
	asm volatile("%0 &= 63" : "+r"(end));
	return w->trace_raw[end] == '\r';
}

/* What w->trace_raw says, of which `length` bytes are known; the trace in w->trace. Where in there its characters begin,
 * HTTP_TRACE_RAW: nowhere. */
INLINE u32 http_trace_parse(struct http_work *w, u32 length)
{
	u32 at = http_trace_text(w, 0);
	u64 index = at;

	if (at + HTTP_TRACE_LENGTH >= length)
		return HTTP_TRACE_RAW;
	asm volatile("%0 &= 15" : "+r"(index));
	if (!http_trace_read(&w->trace_raw[index], &w->trace) || !http_trace_ends(w, at + HTTP_TRACE_LENGTH))
		return HTTP_TRACE_RAW;
	return at;
}
