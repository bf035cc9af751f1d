/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Forbidden questions over TCP: when they may be answered, and the answers, which take the questions' place in the window. */
#pragma once
#include "dns_message.h"
#include "tls.h"
#include "tls_hello.h"

enum {
	DNS_REPLY_MAX = 400, /* bytes of all answers of a segment: what fits behind the headers of an own packet */
};

#define DNS_HOLD (2 * SECOND) /* so long may a refusal wait for the server's answers before it */

/* What becomes of a segment, beside 0 (the next question), TLS_MORE and the drop reasons. */
enum dns_verdict {
	DNS_CUT = -2,    /* what stands before the forbidden question passes, the rest comes again */
	DNS_HOLD_IT = -3, /* all of it comes again */
	DNS_ANSWER = -4,
};

/* The pod has all that the server said, to the end of an answer, and no answer is outstanding: what the kernel says now
 * stands where the pod reads its next message. */
INLINE bool dns_whole(const struct pkt_ctx *ctx, const struct dns_stream *stream)
{
	return stream->next == ctx->tcp_ack && !stream->skip && !stream->kept;
}

/* The question at hand is forbidden, the first one of its segment: now what? A DNS_* or a drop reason. */
INLINE int dns_refusal_due(const struct pkt_ctx *ctx, const struct dns_work *d, struct tls_conn *conn)
{
	struct dns_stream *stream = dns_streams.lookup(&ctx->key);
	s32 before = conn->start + conn->decided - ctx->tcp_seq;
	bool late;

	if (!stream)
		return DROP_DNS_DENIED;
	/* Bytes before it that the server does not have yet. */
	if (before > 0 && (d->had < conn->decided || (s32)(conn->acked - conn->start - conn->decided) < 0)) {
		if (before <= OWN_CUT_MAX)
			return DNS_CUT;
		return dns_whole(ctx, stream) ? DNS_ANSWER : DROP_DNS_DENIED;
	}
	if (!conn->held_ns)
		conn->held_ns = ctx->now_ns;
	late = ctx->now_ns - conn->held_ns > DNS_HOLD;
	if (!dns_whole(ctx, stream))
		return late ? DROP_DNS_DENIED : DNS_HOLD_IT;
	return late || (s32)(conn->asked - stream->answered) <= 0 ? DNS_ANSWER : DNS_HOLD_IT;
}

/* The answer to the forbidden question at hand, behind those to the questions before it: it is no longer than the question
 * whose place it takes. False: there is no room. */
INLINE bool dns_refusal_add(struct dns_work *d, struct tls_conn *conn)
{
	u64 length;
	u32 end;
	u8 *to;

	dns_turn(d, true);
	length = d->at;
	end = d->refused + DNS_PREFIX + length;
	if (length > DNS_REPLY || end > DNS_REPLY_MAX)
		return false;
	to = &conn->bytes[BOUNDED(d->refused, 511)];
	to[0] = length >> 8;
	to[1] = length;
	asm volatile("%0 &= 511" : "+r"(length));
	if (bpf_probe_read_kernel(to + DNS_PREFIX, length, d->message))
		return false;
	d->refused = end;
	return true;
}

/* `segment` goes to the pod, with the answer as its payload if it has one. 0 or a drop reason. */
INLINE int dns_refusal_send(struct __sk_buff *skb, struct pkt_ctx *ctx, struct own_tcp *own, const struct tls_conn *conn,
			    struct own_segment *segment)
{
	u8 *l4 = own_l4(&own->packet, ctx), *payload = l4 + sizeof(struct tcp_header);
	u32 header;
	int failed = 0, reason;

	own_name_server(ctx, segment);
	header = own_tcp_header(own, ctx, l4, segment);
	if (segment->payload && own->timestamps)
		failed = bpf_probe_read_kernel(payload + OWN_TIMESTAMPS, DNS_REPLY_MAX, conn->bytes);
	else if (segment->payload)
		failed = bpf_probe_read_kernel(payload, DNS_REPLY_MAX, conn->bytes);
	if (failed)
		return DROP_ERROR_WRITING_TO_PACKET;
	reason = own_replace(skb, own, ctx, segment, header + segment->payload);
	return reason ? reason : own_copy_to_client(skb, ctx, skb->mark);
}
