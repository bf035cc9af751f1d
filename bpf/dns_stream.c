/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* DNS over TCP: the same questions and answers, each behind two bytes of length.
 *
 * dns_stream_ask  (tail call of dns_query):  the pod's bytes, kept until the server has them, a message a run
 * dns_stream_hear (tail call of dns_answer): the server's bytes, an answer a run, in one segment or several */
#include "lib/deliver.h"
#include "lib/dns.h"
#include "lib/tailcall.h"
#include "lib/tls.h"

enum {
	DNS_STREAM_QUESTION = 600, /* bytes of a question, what EDNS adds included */
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

/* Judge one question of the window: 0, TLS_MORE (none is complete), or a drop reason. */
INLINE int dns_stream_judge(struct pkt_ctx *ctx, struct dns_work *d, struct tls_conn *conn, const struct name_table *table,
			    u64 seed, bool audit)
{
	int reason = dns_stream_next(d, conn);
	bool allowed;

	if (reason)
		return reason;
	if (!dns_is_question((void *)d->message))
		return DROP_DNS_MALFORMED;
	reason = dns_read_question(d, table, ctx->l7_ruleset, seed);
	if (reason)
		return reason;
	d->id = ((struct dns_header *)d->message)->id;
	d->rcode = 0;
	allowed = d->state & NAME_ACCEPT;
	if (allowed || audit) {
		if (!dns_remember(ctx, d))
			return DROP_CT_MAP_INSERTION_FAILED;
		conn->decided += DNS_PREFIX + d->length;
	}
	dns_emit(ctx, d, EVENT_DNS_QUERY, allowed ? 0 : DROP_DNS_DENIED, !allowed && audit);
	return allowed || audit ? 0 : DROP_DNS_DENIED;
}

/* Take the packet into the window: 0, TLS_MORE (dropped alone), or a drop reason. */
INLINE int dns_stream_take(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, struct tls_conn *conn)
{
	u32 offset;
	int reason;

	/* The server has what is in there, and it was judged: make room. */
	if (conn->decided == conn->have && (s32)(conn->acked - conn->start - conn->have) >= 0) {
		conn->start += conn->have;
		conn->have = 0;
		conn->decided = 0;
	}
	offset = ctx->tcp_seq - conn->start;
	if (offset > conn->have || ctx->payload_len > TLS_WINDOW || offset + ctx->payload_len > TLS_WINDOW)
		return TLS_MORE;
	reason = tls_take(skb, ctx, w, conn, offset);
	return reason == DROP_TLS_MALFORMED ? DROP_DNS_MALFORMED : reason;
}

INLINE int dns_stream_asked(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, struct dns_work *d)
{
	struct endpoint_info *pod = endpoint_by_id(ctx->src_endpoint);
	struct names_config *cfg = names_configuration();
	struct tls_conn *conn = tls_conns.lookup(&ctx->key);
	struct name_table *table = name_table_of(cfg);
	int reason = 0;
	bool audit;

	if (!cfg || !table || !pod)
		return -DROP_EP_NOT_READY;
	audit = pod->flags & ENDPOINT_F_AUDIT;
	if (!conn) {
		w->reason = DROP_DNS_NO_STATE;
		return tls_reset(skb, ctx, w, pod, ctx->tcp_seq);
	}
	if (!d->continuing) {
		/* All of it is behind us, and the server has it. */
		if ((s32)(ctx->tcp_seq + ctx->payload_len - conn->start) <= 0)
			return tls_onward(skb, ctx);
		if (conn->mode == TLS_REFUSED || __sync_val_compare_and_swap(&conn->busy, 0, 1))
			return -DROP_DNS_NO_STATE;
		w->expected = conn->start + conn->have;
		reason = dns_stream_take(skb, ctx, w, conn);
		if (reason == TLS_MORE) {
			conn->busy = 0;
			return -DROP_DNS_NO_STATE;
		}
	}
	if (!reason)
		reason = dns_stream_judge(ctx, d, conn, table, cfg->seed, audit);
	if (!reason) {
		d->continuing = 1;
		tailcalls.call(skb, TAIL_DNS_STREAM_ASK);
		reason = DROP_DNS_TOO_LARGE; /* more questions in one segment than tail calls reach */
	}
	if (reason != TLS_MORE)
		conn->mode = TLS_REFUSED;
	conn->busy = 0;
	if (reason == TLS_MORE)
		return tls_onward(skb, ctx);
	w->reason = reason;
	return tls_reset(skb, ctx, w, pod, w->expected);
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

/* The segment is done: what comes next, and on to the pod. */
INLINE int dns_stream_pass(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_stream *stream, u32 skip, u32 kept)
{
	stream->next = ctx->tcp_seq + ctx->payload_len;
	stream->skip = skip;
	stream->kept = kept;
	return deliver(skb, ctx);
}

/* The rest of the segment is the beginning of an answer: keep it. */
INLINE int dns_stream_begin(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *d, struct dns_stream *stream)
{
	struct dns_kept *kept;
	u32 zero = 0;

	d->left = ctx->payload_len - d->position;
	kept = dns_kept_fresh.lookup(&zero);
	if (!kept || d->left > DNS_KEPT)
		return -DROP_DNS_TOO_LARGE;
	if (!stream_keep(skb, ctx->payload_off + d->position, kept->bytes, 0, &d->left, DNS_KEPT - 1) ||
	    dns_kept.update(&ctx->key, kept))
		return -DROP_DNS_NO_STATE;
	return dns_stream_pass(skb, ctx, stream, 0, d->left);
}

/* Nobody waits for the addresses of the answer at hand, which ends `rest` bytes further on in the stream: it passes unread. */
INLINE int dns_stream_unread(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *d, struct dns_stream *stream, u32 rest)
{
	u32 there = ctx->payload_len - d->position;

	d->ttl = 0;
	dns_emit(ctx, d, EVENT_DNS_ANSWER, 0, false);
	if (rest > there)
		return dns_stream_pass(skb, ctx, stream, rest - there, 0);
	d->position += rest;
	tailcalls.call(skb, TAIL_DNS_STREAM_HEAR);
	return -DROP_MISSED_TAIL_CALL;
}

INLINE bool dns_awaited(const struct dns_work *d)
{
	return d->identity && !d->rcode && d->records;
}

/* One answer that begins in this segment, at d->position. */
INLINE int dns_stream_answer(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *d, struct dns_stream *stream,
			     const struct name_table *table, u64 seed)
{
	u32 rest = ctx->payload_len - d->position, needed;
	u8 prefix[DNS_PREFIX];
	int reason;

	if (rest < DNS_PREFIX)
		return dns_stream_begin(skb, ctx, d, stream);
	if (bpf_skb_load_bytes(skb, ctx->payload_off + d->position, prefix, DNS_PREFIX))
		return -DROP_DNS_NO_STATE;
	d->length = dns_u16(prefix);
	d->base = ctx->payload_off + d->position + DNS_PREFIX;
	needed = DNS_PREFIX + (d->length < DNS_LOADED ? d->length : DNS_LOADED);
	if (rest < needed)
		return dns_stream_begin(skb, ctx, d, stream); /* not enough of it to know what it answers */
	reason = dns_load_at(skb, d, d->length);
	if (!reason)
		reason = dns_match_answer(ctx, d, table, seed);
	if (reason)
		return -reason;
	if (DNS_PREFIX + d->length > rest) {
		if (!dns_awaited(d))
			return dns_stream_unread(skb, ctx, d, stream, DNS_PREFIX + d->length);
		if (DNS_PREFIX + d->length > DNS_KEPT)
			return -DROP_DNS_TOO_LARGE;
		return dns_stream_begin(skb, ctx, d, stream);
	}
	d->position += DNS_PREFIX + d->length;
	tailcalls.call(skb, TAIL_DNS_RECORDS);
	return -DROP_MISSED_TAIL_CALL;
}

/* More of an answer that began in an earlier segment. What is kept counts only when the segment has passed: if it does not,
 * it comes again and is taken again. */
INLINE int dns_stream_more(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *d, struct dns_stream *stream,
			   const struct name_table *table, u64 seed)
{
	struct dns_kept *kept = dns_kept.lookup(&ctx->key);
	u32 before = stream->kept, have, needed;
	int reason;

	if (!kept || before >= DNS_KEPT)
		return -DROP_DNS_NO_STATE;
	d->left = ctx->payload_len < DNS_KEPT - before ? ctx->payload_len : DNS_KEPT - before;
	if (!stream_keep(skb, ctx->payload_off, kept->bytes, before, &d->left, DNS_KEPT - 1))
		return -DROP_DNS_NO_STATE;
	have = before + d->left;
	d->length = dns_u16(kept->bytes);
	needed = DNS_PREFIX + (d->length < DNS_LOADED ? d->length : DNS_LOADED);
	if (have < needed)
		return dns_stream_pass(skb, ctx, stream, 0, have);
	if (d->length < DNS_HEADER || bpf_probe_read_kernel(d->message, DNS_LOADED, kept->bytes + DNS_PREFIX))
		return -DROP_DNS_MALFORMED;
	d->have = needed - DNS_PREFIX;
	d->kept = 1;
	reason = dns_match_answer(ctx, d, table, seed);
	if (reason)
		return -reason;
	needed = DNS_PREFIX + d->length;
	if (have >= needed) {
		d->position = needed - before;
		tailcalls.call(skb, TAIL_DNS_RECORDS);
		return -DROP_MISSED_TAIL_CALL;
	}
	if (!dns_awaited(d))
		return dns_stream_unread(skb, ctx, d, stream, needed - before);
	return needed > DNS_KEPT ? -DROP_DNS_TOO_LARGE : dns_stream_pass(skb, ctx, stream, 0, have);
}

INLINE int dns_stream_heard(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *d)
{
	struct names_config *cfg = names_configuration();
	struct name_table *table = name_table_of(cfg);
	struct dns_stream *stream, fresh = {};
	bool more;

	if (!d->continuing) {
		tls_heard(ctx);
		if (ctx->tcp_flags & TCP_SYN) {
			fresh.next = ctx->tcp_seq + 1;
			dns_streams.update(&ctx->key, &fresh);
		}
	}
	if (!ctx->payload_len || skb->mark == OWN_PACKET_MARK)
		return deliver(skb, ctx);
	if (ctx->flags & CTX_F_FRAGMENT)
		return -DROP_IP_FRAGMENTATION_NOT_SUPPORTED;
	stream = dns_streams.lookup(&ctx->key);
	if (!stream)
		return -DROP_DNS_NO_STATE;
	if (!d->continuing) {
		if ((s32)(ctx->tcp_seq + ctx->payload_len - stream->next) <= 0)
			return deliver(skb, ctx); /* again; what it teaches is known */
		if (ctx->tcp_seq != stream->next)
			return -DROP_DNS_NO_STATE;
		d->position = stream->skip < ctx->payload_len ? stream->skip : ctx->payload_len;
	}
	if (d->position >= ctx->payload_len)
		return dns_stream_pass(skb, ctx, stream,
				       stream->skip > ctx->payload_len ? stream->skip - ctx->payload_len : 0, 0);
	if (!table)
		return -DROP_EP_NOT_READY;
	more = !d->continuing && stream->kept;
	d->continuing = 1;
	return more ? dns_stream_more(skb, ctx, d, stream, table, cfg->seed) :
		      dns_stream_answer(skb, ctx, d, stream, table, cfg->seed);
}

int dns_stream_hear(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *d = dns_working();

	if (!ctx || !d)
		return TC_ACT_SHOT;
	return finish(skb, ctx, dns_stream_heard(skb, ctx, d));
}
