/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One event per request: when it is refused, or when the head of its response has come (http_hook.h), or when it is
 * clear that none will. Method and path are read from the packet when the request's head is complete, not byte by byte on
 * the way; what an earlier packet had of them waits in the connection's entry. */
#pragma once
#include "conntrack.h"
#include "events.h"
#include "http_state.h"
#include "http_tables.h"
#include "http_trace.h"

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

/* Take what the packet has of the traceparent, up to byte number `end`; how much there is of it. */
INLINE u32 http_collect_trace(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct http_work *w, u32 end)
{
	struct http_flow *flow = &w->flow;
	u32 from = flow->now.line_seq + flow->trace_at, length = end - from;

	if ((s32)length > HTTP_TRACE_RAW)
		length = HTTP_TRACE_RAW;
	if ((s32)length > 0)
		flow->trace_saved = http_collect_field(skb, ctx, w->trace_raw, flow->trace_saved, from, length);
	return flow->trace_saved;
}

/* The trace of the request whose head was read up to byte number `end`, and whether it can be blanked out when the head
 * comes again: not where rules look at fields. */
INLINE void http_note_trace(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct http_work *w, u32 end)
{
	struct http_config *cfg = http_configuration();
	u32 length, at;

	if (!cfg || !cfg->traces)
		return;
	length = http_collect_trace(skb, ctx, w, end);
	at = http_trace_parse(w, length);
	if (at >= HTTP_TRACE_RAW)
		return;
	w->asked.traced = 1;
	at += w->flow.trace_at;
	if (!(w->flow.now.flags & HTTP_F_PENDING) && at + HTTP_TRACE_LENGTH < HTTP_BUFFER)
		w->traced_at = at;
}

/* What an event says of the request whose head was read last. */
INLINE void http_note(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_work *w, u8 reason)
{
	const struct http_parse *now = &w->flow.now;
	struct http_asked *asked = &w->asked;

	/* Not the byte at which a malformed request ended. */
	http_collect(skb, ctx, w, ctx->tcp_seq + w->pos - (reason ? 1 : 0));
	asked->complete_ns = precise_now(ctx);
	asked->rule_id = ctx->rule_id;
	asked->src_identity = ctx->src_identity;
	asked->policy_revision = ctx->policy_revision;
	asked->service_id = ctx->service_id;
	asked->ruleset = now->ruleset;
	asked->path_len = now->path_len || (now->flags & HTTP_F_DECIDED) ? now->path_len : now->path_saved;
	asked->http_version = now->flags & HTTP_F_DECIDED ? (now->flags & HTTP_F_VERSION_10 ? 10 : 11) : 0;
	asked->method_len = now->method_len;
	asked->match_type = ctx->match_type;
	asked->audited = w->audit ? reason : 0;
	asked->upgrade = now->begun == (HTTP_BEGUN_RULES | HTTP_BEGUN_UPGRADE | HTTP_BEGUN_WEBSOCKET) &&
			 !(now->flags & (HTTP_F_LENGTH | HTTP_F_CODING));
	asked->line_seq = now->line_seq;
	asked->traced = 0;
	w->traced_at = 0;
	if (unlikely(w->flow.traces == HTTP_TRACES_ONE))
		http_note_trace(skb, ctx, w, ctx->tcp_seq + w->pos);
	/* An earlier packet ended behind the path, before it was known where that is. */
	if (unlikely(now->path_saved > asked->path_len)) {
		u64 length = asked->path_len;

		asm volatile("%0 &= 255" : "+r"(length));
		if (length < HTTP_PATH_MAX)
			bpf_probe_read_kernel(&w->path[length], HTTP_PATH_MAX - length, w->zeros);
	}
}

/* `from_server`: the packet at hand is the server's, so the rules are those of the direction that it does not go. */
INLINE void http_emit(struct pkt_ctx *ctx, const struct http_asked *asked, const u8 *method, const u8 *path,
		      const struct http_trace *trace, bool from_server, u16 status, u8 reason)
{
	bool egress = (ctx->direction == DIR_EGRESS) != from_server;
	const struct ct_key *key = &ctx->key;
	u64 age_us;
	struct http_event *e = http_event_reserve();

	if (!e) {
		count_lost(EVENT_HTTP_REQUEST);
		return;
	}
	event_header_at(&e->header, EVENT_HTTP_REQUEST, ctx->direction == DIR_EGRESS ? ctx->src_endpoint : ctx->dst_endpoint,
			precise_now(ctx));
	e->header.flags = asked->audited ? EVENT_F_AUDIT : 0;
	e->header.subtype = from_server && status ? HTTP_EVENT_ANSWERED : HTTP_EVENT_REQUEST;
	e->connection.saddr = egress ? key->local : key->remote;
	e->connection.daddr = egress ? key->remote : key->local;
	e->connection.sport = egress ? key->local_port : key->remote_port;
	e->connection.dport = egress ? key->remote_port : key->local_port;
	e->connection.protocol = PROTO_TCP;
	e->connection.tcp_flags = ctx->tcp_flags;
	e->connection.direction = egress ? DIR_EGRESS : DIR_INGRESS;
	e->connection.ct_state = CT_ESTABLISHED;
	e->connection.src_identity = asked->src_identity;
	e->connection.dst_identity = from_server ? ctx->src_identity : ctx->dst_identity;
	e->connection.rule_id = asked->rule_id;
	e->connection.policy_revision = asked->policy_revision;
	e->connection.drop_reason = reason | asked->audited;
	e->connection.match_type = asked->match_type;
	e->connection.pad0 = 0;
	e->connection.service_id = asked->service_id;
	e->http_version = asked->http_version;
	e->method_len = asked->method_len;
	e->status = status;
	e->path_len = asked->path_len;
	e->traced = asked->traced;
	age_us = (e->header.time_ns - asked->complete_ns) / 1000;
	e->latency_us = age_us > 0xffffffff ? 0xffffffff : age_us;
	e->l7_ruleset = asked->ruleset;
	__builtin_memcpy(e->method, method, HTTP_METHOD_MAX);
	__builtin_memcpy(e->path, path, HTTP_PATH_MAX);
	if (unlikely(asked->traced))
		e->trace = *trace;
	http_event_submit();
}

/* Report the request that the connection waits for an answer to, if there is one: status 0 says that there was none.
 * True: there was one. `from_server`: the packet at hand is the server's. */
INLINE bool http_settle(struct pkt_ctx *ctx, struct http_conn *conn, bool from_server, u16 status)
{
	if (__sync_val_compare_and_swap(&conn->asked.waiting, (u64)HTTP_WAITS, (u64)HTTP_TAKEN) != HTTP_WAITS)
		return false;
	http_emit(ctx, &conn->asked, conn->asked_method, conn->asked_path, &conn->asked_trace, from_server, status, 0);
	conn->asked.waiting = HTTP_WAITS_NOT;
	return true;
}

/* What is in the entry is complete: whoever sees that it waits may report it. */
INLINE void http_wait(struct http_asked *asked)
{
#ifdef IN_ORDER
	asm volatile("" ::: "memory");
	*(volatile u64 *)&asked->waiting = HTTP_WAITS;
#else
	__sync_fetch_and_add(&asked->waiting, HTTP_WAITS);
#endif
}

/* The request of the packet at hand is on its way to the server: its event waits for the answer. */
INLINE void http_expect(struct pkt_ctx *ctx, struct http_work *w, struct http_conn *conn)
{
	struct http_asked *asked = &conn->asked;

	if (likely(!asked->waiting && !asked->pipelined && !w->asked.pipelined)) {
		w->asked.waiting = HTTP_WAITS_NOT;
		*asked = w->asked;
		__builtin_memcpy(conn->asked_method, w->method, HTTP_METHOD_MAX);
		__builtin_memcpy(conn->asked_path, w->path, HTTP_PATH_MAX);
		if (unlikely(asked->traced))
			conn->asked_trace = w->trace;
		http_wait(asked);
		return;
	}
	asked->pipelined |= http_settle(ctx, conn, false, 0) | w->asked.pipelined;
	if (w->asked.waiting)
		http_emit(ctx, &w->asked, w->method, w->path, &w->trace, false, 0, 0);
}
