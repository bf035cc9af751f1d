/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* DNS over TCP, the pod's side: each message behind two bytes of length.
 *
 * dns_stream_ask    (tail call of dns_query): the pod's bytes, kept until the server has them, some messages a run
 * dns_stream_refuse (tail call of that):      forbidden ones are answered, and what the pod sends after its answer */
#include "lib/deliver.h"
#include "lib/dns_refuse.h"
#include "lib/tailcall.h"

enum {
	DNS_STREAM_QUESTION = 600, /* bytes of a question, what EDNS adds included */
	DNS_STREAM_RUNS = 20,      /* for one segment: tail calls are few, ... */
	DNS_STREAM_BATCH = 3,      /* ... so that each judges some questions */
};

/* The next complete question in the window: 0 and its bytes in d->message, TLS_MORE, or a drop reason. */
INLINE int dns_stream_next(struct dns_work *d, const struct tls_conn *conn)
{
	u32 at = conn->decided, length;

	if (at + DNS_PREFIX > conn->have)
		return TLS_MORE;
	length = tls_u16(conn, at);
	if (length < DNS_HEADER + 5 || length > DNS_STREAM_QUESTION)
		return DROP_DNS_MALFORMED;
	if (at + DNS_PREFIX + length > conn->have)
		return TLS_MORE;
	d->length = length;
	d->have = length < DNS_LOADED ? length : DNS_LOADED;
	if (bpf_probe_read_kernel(d->message, DNS_LOADED, &conn->bytes[BOUNDED(at + DNS_PREFIX, TLS_WINDOW - 1)]))
		return DROP_DNS_MALFORMED;
	return 0;
}

/* Judge one question of the window: 0, an enum dns_verdict, TLS_MORE (none is complete), or a drop reason. */
INLINE int dns_stream_judge(struct pkt_ctx *ctx, struct dns_work *d, struct tls_conn *conn, const struct name_table *table,
			    u64 seed, bool audit)
{
	int reason = dns_stream_next(d, conn);
	bool allowed;

	if (reason)
		return reason;
	reason = dns_read_question(d, table, ctx->l7_ruleset, seed);
	if (!reason && !dns_is_question(d))
		reason = DROP_DNS_MALFORMED;
	if (reason)
		return reason;
	d->id = ((struct dns_header *)d->message)->id;
	d->rcode = 0;
	allowed = d->state & NAME_ACCEPT;
	if (allowed || audit) {
		if (d->refused)
			return DNS_ANSWER; /* it is asked again on another connection */
		if (!dns_remember(ctx, d))
			return DROP_CT_MAP_INSERTION_FAILED;
		conn->asked += 1;
	} else {
		reason = d->refused ? DNS_ANSWER : dns_refusal_due(ctx, d, conn);
		if (reason == DNS_ANSWER && dns_refusal_add(d, conn))
			reason = 0;
	}
	if (!reason || reason == DROP_DNS_DENIED)
		dns_emit(ctx, d, EVENT_DNS_QUERY, allowed ? 0 : DROP_DNS_DENIED, !allowed && audit);
	if (!reason)
		conn->decided += DNS_PREFIX + d->length;
	return reason;
}

/* The server has what is at the beginning of the window, and it was judged: make room. */
INLINE void dns_stream_slide(struct tls_work *w, struct tls_conn *conn)
{
	u32 done = conn->acked - conn->start;
	u64 rest;

	if ((s32)done <= 0)
		return;
	if (done > conn->decided)
		done = conn->decided;
	/* What comes again may begin with bytes of which the pod does not know yet that they are there. */
	if (done < conn->have && conn->have <= TLS_WINDOW / 2)
		return;
	rest = conn->have - done;
	if (rest) {
		rest -= 1;
		asm volatile("%0 &= %1" : "+r"(rest) : "i"(TLS_WINDOW - 1));
		rest += 1;
		if (bpf_probe_read_kernel(w->buffer, rest, &conn->bytes[BOUNDED(done, TLS_WINDOW - 1)]) ||
		    bpf_probe_read_kernel(conn->bytes, rest, w->buffer))
			return;
	}
	conn->start += done;
	conn->have -= done;
	conn->decided -= done;
}

/* Take the packet into the window: 0, TLS_MORE (dropped alone), or a drop reason. */
INLINE int dns_stream_take(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *d, struct tls_work *w,
			   struct tls_conn *conn)
{
	u32 offset;
	int reason;

	dns_stream_slide(w, conn);
	w->expected = conn->start + conn->have;
	d->had = conn->have;
	offset = ctx->tcp_seq - conn->start;
	if (offset > conn->have || ctx->payload_len > TLS_WINDOW || offset + ctx->payload_len > TLS_WINDOW)
		return TLS_MORE;
	reason = tls_take(skb, ctx, w, conn, offset);
	return reason == DROP_TLS_MALFORMED ? DROP_DNS_MALFORMED : reason;
}

/* The questions before the forbidden one go on, as if the pod had sent no more. */
INLINE int dns_stream_cut(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, const struct dns_work *d,
			  struct tls_conn *conn)
{
	int reason = own_shorten(skb, &w->own, ctx, conn->start + conn->decided - ctx->tcp_seq);

	conn->have = d->had > conn->decided ? d->had : conn->decided;
	conn->busy = 0;
	return reason ? -reason : tls_onward(skb, ctx);
}

/* No question of the segment is left to judge, or none may be judged any more. Returns a verdict. */
INLINE int dns_stream_settle(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, struct dns_work *d,
			     struct tls_conn *conn, int reason)
{
	if (d->refused) {
		tailcalls.call(skb, TAIL_DNS_STREAM_REFUSE);
		return -DROP_MISSED_TAIL_CALL; /* nothing more passes: busy */
	}
	if (reason == DNS_CUT)
		return dns_stream_cut(skb, ctx, w, d, conn);
	if (reason == TLS_MORE || reason == DNS_HOLD_IT) {
		if (reason == DNS_HOLD_IT)
			conn->have = d->had;
		conn->busy = 0;
		if (reason == TLS_MORE)
			return tls_onward(skb, ctx);
		count_packet(ctx->direction, DROP_DNS_NO_STATE, ctx->ip_len);
		return TC_ACT_SHOT; /* it comes again, and is told then */
	}
	conn->mode = TLS_REFUSED;
	conn->busy = 0;
	if (reason == DROP_DNS_DENIED)
		count_packet(ctx->direction, reason, ctx->ip_len);
	else
		drop_packet(skb, ctx, reason); /* event and count; the packet becomes the server's reset */
	return tls_reset(skb, ctx, w, w->expected);
}

INLINE int dns_stream_asked(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, struct dns_work *d)
{
	struct endpoint_info *pod = endpoint_by_id(ctx->src_endpoint);
	struct names_config *cfg = names_configuration();
	struct tls_conn *conn = tls_conns.lookup(&ctx->key);
	struct name_table *table = name_table_of(cfg);
	int i, reason = 0;

	if (!cfg || !table || !pod)
		return -DROP_EP_NOT_READY;
	if (!conn) {
		drop_packet(skb, ctx, DROP_DNS_NO_STATE);
		return tls_reset(skb, ctx, w, ctx->tcp_seq);
	}
	if (!d->continuing) {
		/* All of it is behind us, and the server has it. */
		if ((s32)(ctx->tcp_seq + ctx->payload_len - conn->start) <= 0)
			return tls_onward(skb, ctx);
		if (conn->mode == TLS_REFUSED || __sync_val_compare_and_swap(&conn->busy, 0, 1))
			return -DROP_DNS_NO_STATE;
		reason = dns_stream_take(skb, ctx, d, w, conn);
		if (reason == TLS_MORE) {
			conn->busy = 0;
			return -DROP_DNS_NO_STATE;
		}
	}
#pragma clang loop unroll(disable)
	for (i = 0; i < DNS_STREAM_BATCH && !reason; i++) {
		asm volatile("" ::: "memory");
		reason = dns_stream_judge(ctx, d, conn, table, cfg->seed, pod->flags & ENDPOINT_F_AUDIT);
	}
	if (!reason) {
		d->continuing += 1;
		if (d->continuing < DNS_STREAM_RUNS)
			tailcalls.call(skb, TAIL_DNS_STREAM_ASK);
		reason = DROP_DNS_TOO_LARGE;
	}
	return dns_stream_settle(skb, ctx, w, d, conn, reason);
}

int dns_stream_ask(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *d = dns_working();
	u32 zero = 0;
	struct tls_work *w = tls_scratch.lookup(&zero);

	if (!ctx || !d || !w)
		return TC_ACT_SHOT;
	return finish(skb, ctx, dns_stream_asked(skb, ctx, w, d));
}

/* The pod gets its answer and the end of the connection, the server a reset. */
INLINE int dns_refuse_now(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, const struct dns_work *d,
			  struct tls_conn *conn)
{
	struct own_segment segment = {
		.to_client = true,
		.flags = TCP_PSH | TCP_ACK | TCP_FIN,
		.payload = d->refused,
		.seq = ctx->tcp_ack,
		.ack = ctx->tcp_seq + ctx->payload_len + (ctx->tcp_flags & TCP_FIN ? 1 : 0),
	};
	int i, reason;

	if (d->refused > DNS_REPLY_MAX)
		return -DROP_DNS_TOO_LARGE;
#pragma unroll
	for (i = 0; i < 4; i++) /* the checksum counts words */
		conn->bytes[BOUNDED(d->refused + i, 511)] = 0;
	conn->answer = segment.seq;
	conn->length = d->refused;
	conn->next = segment.ack;
	conn->told = w->expected;
	conn->mode = TLS_ANSWERED;
	conn->busy = 0;
	count_packet(ctx->direction, DROP_DNS_DENIED, ctx->ip_len);
	reason = own_note(skb, &w->own, ctx);
	if (!reason)
		reason = dns_refusal_send(skb, ctx, &w->own, conn, &segment);
	if (!reason)
		reason = own_reset_server(skb, &w->own, ctx, w->expected);
	return reason ? -reason : tls_onward(skb, ctx);
}

/* The pod goes on after its answer: without an event, the question had one. A server that has said meanwhile that the reset
 * was not where it is, is told again. */
INLINE int dns_refuse_after(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, struct tls_conn *conn)
{
	u32 acked = conn->acked, length = conn->length;
	struct own_segment segment = {};
	int reason = own_note(skb, &w->own, ctx);

	if (reason || length > DNS_REPLY_MAX)
		return -DROP_INVALID_PACKET_DROPPED;
	count_packet(ctx->direction, DROP_DNS_CLOSED, ctx->ip_len);
	if (own_closing(ctx, &conn->next, conn->answer, conn->answer + length + 1, &segment)) {
		segment.payload = segment.flags & TCP_FIN ? length : 0;
		reason = dns_refusal_send(skb, ctx, &w->own, conn, &segment);
	}
	if (reason)
		return -reason;
	if (conn->told == acked)
		return TC_ACT_SHOT;
	conn->told = acked;
	reason = own_reset_server(skb, &w->own, ctx, acked);
	return reason ? -reason : tls_onward(skb, ctx);
}

int dns_stream_refuse(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *d = dns_working();
	u32 zero = 0;
	struct tls_work *w = tls_scratch.lookup(&zero);
	struct tls_conn *conn = ctx ? tls_conns.lookup(&ctx->key) : NULL;

	if (!ctx || !d || !w || !conn)
		return TC_ACT_SHOT;
	return finish(skb, ctx,
		      conn->mode == TLS_ANSWERED ? dns_refuse_after(skb, ctx, w, conn) : dns_refuse_now(skb, ctx, w, d, conn));
}
