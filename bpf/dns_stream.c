/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* DNS over TCP, the server's side.
 *
 * dns_stream_hear (tail call of dns_answer): the server's bytes, an answer a run, in one segment or several */
#include "lib/deliver.h"
#include "lib/dns.h"
#include "lib/tailcall.h"
#include "lib/tls.h"

enum {
	DNS_COMPLETE = 0x100, /* a verdict: the answer at hand ends in the segment, its records are to be read */
};

/* The segment is done: what comes next, and on to the pod. */
INLINE int dns_stream_pass(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct dns_work *d, struct dns_stream *stream,
			   u32 skip, u32 kept)
{
	stream->next = ctx->tcp_seq + ctx->payload_len;
	stream->skip = skip;
	stream->kept = kept;
	stream->answered += d->finished;
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
	return dns_stream_pass(skb, ctx, d, stream, 0, d->left);
}

/* Nobody waits for the addresses of the answer at hand, which ends `rest` bytes further on in the stream: it passes unread. */
INLINE int dns_stream_unread(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *d, struct dns_stream *stream, u32 rest)
{
	u32 there = ctx->payload_len - d->position;

	d->ttl = 0;
	d->finished += 1;
	dns_emit(ctx, d, EVENT_DNS_ANSWER, 0, false);
	if (rest > there)
		return dns_stream_pass(skb, ctx, d, stream, rest - there, 0);
	d->position += rest;
	tailcalls.call(skb, TAIL_DNS_STREAM_HEAR);
	return -DROP_MISSED_TAIL_CALL;
}

INLINE bool dns_awaited(const struct dns_work *d)
{
	return d->identity && !d->rcode && d->records;
}

/* One answer that begins in this segment, at d->position: DNS_COMPLETE, or a verdict. */
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
	d->finished += 1;
	return DNS_COMPLETE;
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
		return dns_stream_pass(skb, ctx, d, stream, 0, have);
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
		d->finished += 1;
		return DNS_COMPLETE;
	}
	if (!dns_awaited(d))
		return dns_stream_unread(skb, ctx, d, stream, needed - before);
	return needed > DNS_KEPT ? -DROP_DNS_TOO_LARGE : dns_stream_pass(skb, ctx, d, stream, 0, have);
}

/* The kernel has answered in the server's place: what it still says would stand behind that. */
INLINE int dns_stream_closed(struct pkt_ctx *ctx)
{
	if (ctx->payload_len)
		return -DROP_DNS_CLOSED;
	count_packet(DIR_INGRESS, DROP_DNS_CLOSED, ctx->ip_len);
	return TC_ACT_SHOT;
}

INLINE int dns_stream_heard(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *d)
{
	struct names_config *cfg = names_configuration();
	struct name_table *table = name_table_of(cfg);
	struct dns_stream *stream, fresh = {};
	struct tls_conn *conn;
	bool more;
	int verdict;

	if (!d->continuing) {
		d->pending = 0;
		tls_heard(ctx);
		conn = tls_conns.lookup(&ctx->key);
		if (conn && conn->mode == TLS_ANSWERED)
			return dns_stream_closed(ctx);
		d->finished = 0;
		if (ctx->tcp_flags & TCP_SYN) {
			fresh.next = ctx->tcp_seq + 1;
			dns_streams.update(&ctx->key, &fresh);
		}
	}
	if (d->pending) {
		d->pending = 0;
		if (dns_learn_and_tell(skb, ctx, d))
			return TC_ACT_SHOT;
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
		return dns_stream_pass(skb, ctx, d, stream,
				       stream->skip > ctx->payload_len ? stream->skip - ctx->payload_len : 0, 0);
	if (!table)
		return -DROP_EP_NOT_READY;
	more = !d->continuing && stream->kept;
	d->continuing = 1;
	verdict = more ? dns_stream_more(skb, ctx, d, stream, table, cfg->seed) :
			 dns_stream_answer(skb, ctx, d, stream, table, cfg->seed);
	return verdict == DNS_COMPLETE ? dns_read_records(skb, ctx, d) : verdict;
}

int dns_stream_hear(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *d = dns_working();

	if (!ctx || !d)
		return TC_ACT_SHOT;
	return finish(skb, ctx, dns_stream_heard(skb, ctx, d));
}
