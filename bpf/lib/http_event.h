/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One event per request, when its head is complete or refused. Method and path are read from the packet then, not byte
 * by byte on the way; what an earlier packet had of them waits in the connection's entry. */
#pragma once
#include "events.h"
#include "http_state.h"

/* Append to `field`, which has `saved` bytes, those of the packet up to `length` in all; the field begins at `seq`. */
INLINE u8 http_collect_field(struct __sk_buff *skb, const struct pkt_ctx *ctx, u8 *field, u32 saved, u32 seq, u32 length)
{
	u32 from = seq + saved - ctx->tcp_seq;
	u64 at = saved, count;

	if (length <= saved || from >= ctx->payload_len || length - saved > ctx->payload_len - from)
		return saved;
	count = length - saved - 1;
	asm volatile("%0 &= 255" : "+r"(at));
	asm volatile("%0 &= 255" : "+r"(count));
	bpf_skb_load_bytes(skb, ctx->payload_off + from, field + at, count + 1);
	return saved + count + 1;
}

/* Take what the packet has of the request line, up to byte number `end`. */
INLINE void http_collect(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct http_work *w, u32 end)
{
	struct http_parse *now = &w->flow.now;
	u32 length;

	if (!(now->flags & HTTP_F_LINE))
		return;
	length = now->method_len ? now->method_len : end - now->line_seq;
	if ((s32)length < 0)
		return;
	if (length > HTTP_METHOD_MAX)
		length = HTTP_METHOD_MAX;
	if (!now->method_saved)
		__builtin_memset(w->method, 0, HTTP_METHOD_MAX);
	now->method_saved = http_collect_field(skb, ctx, w->method, now->method_saved, now->line_seq, length);
	if (!now->path_saved)
		__builtin_memset(w->path, 0, HTTP_PATH_MAX);
	if (!now->method_len)
		return;
	length = now->path_len ? now->path_len : (now->flags & HTTP_F_DECIDED) ? 0 : end - now->path_seq;
	if ((s32)length < 0)
		return;
	if (length > HTTP_PATH_MAX)
		length = HTTP_PATH_MAX;
	now->path_saved = http_collect_field(skb, ctx, w->path, now->path_saved, now->path_seq, length);
}

/* An earlier packet ended behind the path, before it was known where that is. */
INLINE void http_emit_path(struct http_event *e, const struct http_work *w, u32 saved)
{
	u64 length = e->path_len;

	if (likely(saved <= length)) {
		__builtin_memcpy(e->path, w->path, HTTP_PATH_MAX);
		return;
	}
	__builtin_memset(e->path, 0, HTTP_PATH_MAX);
	if (!length || length > HTTP_PATH_MAX)
		return;
	asm volatile("%0 &= 255" : "+r"(length));
	if (length <= HTTP_PATH_MAX)
		bpf_probe_read_kernel(e->path, length, w->path);
}

INLINE void http_emit(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, u16 status, u8 reason)
{
	const struct http_parse *now = &w->flow.now;
	struct http_event *e;

	/* Not the byte at which a malformed request ended. */
	http_collect(skb, ctx, w, ctx->tcp_seq + w->pos - (reason ? 1 : 0));
	e = http_events.ringbuf_reserve(sizeof(*e));
	if (!e) {
		count_lost(EVENT_HTTP_REQUEST);
		return;
	}
	event_header_fill(&e->header, EVENT_HTTP_REQUEST, ctx->dst_endpoint);
	e->header.flags = reason && w->audit ? EVENT_F_AUDIT : 0;
	e->connection.saddr = ctx->saddr;
	e->connection.daddr = ctx->daddr;
	e->connection.sport = ctx->sport;
	e->connection.dport = ctx->dport;
	e->connection.protocol = PROTO_TCP;
	e->connection.tcp_flags = ctx->tcp_flags;
	e->connection.direction = DIR_INGRESS;
	e->connection.ct_state = ctx->ct_state;
	e->connection.src_identity = ctx->src_identity;
	e->connection.dst_identity = ctx->dst_identity;
	e->connection.rule_id = ctx->rule_id;
	e->connection.policy_revision = ctx->policy_revision;
	e->connection.drop_reason = reason;
	e->connection.match_type = ctx->match_type;
	e->connection.pad0 = 0;
	e->connection.service_id = ctx->service_id;
	e->http_version = now->flags & HTTP_F_DECIDED ? (now->flags & HTTP_F_VERSION_10 ? 10 : 11) : 0;
	e->method_len = now->method_len;
	e->status = status;
	e->path_len = now->path_len || (now->flags & HTTP_F_DECIDED) ? now->path_len : now->path_saved;
	e->pad1 = 0;
	e->latency_us = 0;
	e->l7_ruleset = now->ruleset;
	__builtin_memcpy(e->method, w->method, HTTP_METHOD_MAX);
	http_emit_path(e, w, now->path_saved);
	http_events.ringbuf_submit(e, wakeup_flags(ctx));
}
