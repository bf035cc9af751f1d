/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Server names of TLS clients.
 *
 * tls_hello (tail call of from_endpoint, or of ingress): is it a ClientHello, whom does it name -> on its way, or both
 * sides reset */
#include "lib/deliver.h"
#include "lib/dns_event.h"
#include "lib/tailcall.h"
#include "lib/tls_hello.h"

#define TCP_URG 32

INLINE void tls_emit(struct pkt_ctx *ctx, struct tls_work *w, u8 reason, bool audited)
{
	struct name_event *e = name_event_begin(ctx, EVENT_TLS_HELLO, reason, audited);

	if (!e)
		return;
	e->name_len = w->server.length;
	__builtin_memcpy(e->name, w->server.name, sizeof(e->name));
	name_events.ringbuf_submit(e, wakeup_flags(ctx));
}

/* On to the server: a pod, or, from the sender's turn, wherever it is. Returns a verdict for `finish`. */
INLINE int tls_onward(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	if (ctx->direction == DIR_INGRESS)
		return deliver(skb, ctx);
	tailcalls.call(skb, TAIL_FORWARD);
	return -DROP_MISSED_TAIL_CALL;
}

/* Both sides are told. The client's reset is sent at once: it may run through hooks, and what they write over the context
 * is put back. Then the packet at hand goes to the server in its place. `expected`: the server's next byte. */
INLINE int tls_reset(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, u32 expected)
{
	struct own_segment segment = {
		.to_client = true,
		.flags = TCP_RST | TCP_ACK,
		.seq = ctx->tcp_ack,
		.ack = ctx->tcp_seq + ctx->payload_len,
	};
	int reason = own_note(skb, &w->own, ctx);
	u32 length;

	if (reason)
		return -reason;
	own_name_server(ctx, &segment);
	length = own_tcp_header(&w->own, ctx, own_l4(&w->own.packet, ctx), &segment);
	reason = own_replace(skb, &w->own, ctx, &segment, length);
	if (reason)
		return -reason;
	w->saved = *ctx;
	own_copy_to_client(skb, ctx, skb->mark);
	*ctx = w->saved;
	reason = own_reset_server(skb, &w->own, ctx, expected);
	return reason ? -reason : tls_onward(skb, ctx);
}

/* `count` bytes of the payload from `from` on are what is at `at` of the window: they passed before. */
INLINE bool tls_same(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct tls_work *w, const struct tls_conn *conn,
		     u32 at, u32 count)
{
	u64 length = count - 1;
	u32 i;

	asm volatile("%0 &= %1" : "+r"(length) : "i"(TLS_WINDOW - 1));
	length += 1;
	if (bpf_skb_load_bytes(skb, ctx->payload_off, w->buffer, length))
		return false;
	w->left = length;
#pragma clang loop unroll(disable)
	for (i = 0; i < TLS_WINDOW; i++) {
		asm volatile("" ::: "memory");
		if (i >= w->left)
			break;
		if (w->buffer[BOUNDED(i, TLS_WINDOW - 1)] != conn->bytes[BOUNDED(at + i, TLS_WINDOW - 1)])
			return false;
	}
	return true;
}

/* Take what is new of the packet into the window: 0 or a drop reason. `offset`: of its first byte in the stream. */
INLINE int tls_take(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct tls_work *w, struct tls_conn *conn, u32 offset)
{
	u32 known = conn->have - offset, fresh = ctx->payload_len - known;

	if (offset > conn->have)
		return DROP_TLS_OUT_OF_ORDER;
	if (known && !tls_same(skb, ctx, w, conn, offset, known < ctx->payload_len ? known : ctx->payload_len))
		return DROP_TLS_MALFORMED;
	if (known >= ctx->payload_len || conn->have >= TLS_WINDOW)
		return 0;
	w->left = conn->have + fresh > TLS_WINDOW ? TLS_WINDOW - conn->have : fresh;
	if (!stream_keep(skb, ctx->payload_off + known, conn->bytes, conn->have, &w->left, TLS_WINDOW - 1))
		return DROP_INVALID_PACKET_DROPPED;
	conn->have += w->left;
	return 0;
}

/* A packet while the first message is being read, or not yet acknowledged: 0 passes, TLS_MORE passes as well, or a drop
 * reason; DROP_TLS_OUT_OF_ORDER just drops. */
INLINE int tls_inspect(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, struct tls_conn *conn,
		       const struct name_table *table)
{
	u32 offset = ctx->tcp_seq - conn->start, until;
	int reason;

	if (conn->mode == TLS_PASSED) {
		if (offset >= conn->decided)
			return 0;
		until = offset + ctx->payload_len < conn->decided ? ctx->payload_len : conn->decided - offset;
		return tls_same(skb, ctx, w, conn, offset, until) ? 0 : DROP_TLS_MALFORMED;
	}
	reason = tls_take(skb, ctx, w, conn, offset);
	if (!reason)
		reason = tls_read_head(w, conn);
	if (!reason)
		reason = tls_find_server(w, conn);
	if (!reason) {
		reason = tls_match(w, conn, table, ctx->l7_ruleset);
		conn->decided = w->name_at + w->name_len;
	}
	if (reason == TLS_MORE && conn->have >= TLS_WINDOW)
		return DROP_TLS_MALFORMED;
	return reason;
}

/* What becomes of the packet: 0 passes, TLS_MORE is dropped alone, a drop reason ends the connection. */
INLINE int tls_decide(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, struct tls_conn *conn,
		      const struct name_table *table, bool audit)
{
	bool reading = conn->mode == TLS_READING;
	int reason = tls_inspect(skb, ctx, w, conn, table);

	if (reason == TLS_MORE)
		return 0;
	if (reason == DROP_TLS_OUT_OF_ORDER)
		return TLS_MORE;
	if (reading)
		tls_emit(ctx, w, reason, reason && audit);
	conn->mode = !reason || audit ? TLS_PASSED : TLS_REFUSED;
	conn->ruleset = ctx->l7_ruleset;
	return audit ? 0 : reason;
}

/* The server has all that the verdict rests on: only the name is kept. */
INLINE void tls_settle(struct pkt_ctx *ctx, struct tls_work *w, const struct tls_conn *conn, const struct name_table *table)
{
	if (tls_read_head(w, conn) || tls_find_server(w, conn))
		__builtin_memset(&w->server, 0, sizeof(w->server)); /* audited: it passed without a name */
	else
		tls_match(w, conn, table, conn->ruleset);
	w->server.ruleset = conn->ruleset;
	if (!tls_servers.update(&ctx->key, &w->server))
		tls_conns.delete(&ctx->key);
}

/* May a connection whose server is known go on? */
INLINE bool tls_known(struct pkt_ctx *ctx, struct tls_work *w, struct tls_server *server, const struct name_table *table,
		      bool audit)
{
	if (likely(server->ruleset == ctx->l7_ruleset))
		return true;
	if (tls_match_again(w, server, table, ctx->l7_ruleset) || audit) {
		server->ruleset = ctx->l7_ruleset;
		return true;
	}
	w->server = *server;
	return false;
}

/* Segments that TCP's rules let mean more than one thing. */
INLINE int tls_check_segment(const struct pkt_ctx *ctx)
{
	if (ctx->flags & CTX_F_FRAGMENT)
		return DROP_IP_FRAGMENTATION_NOT_SUPPORTED;
	if (ctx->l4_off != L3_OFF + (ctx->family == 4 ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header)))
		return DROP_INVALID_PACKET_DROPPED;
	if ((ctx->tcp_flags & TCP_URG) || (ctx->payload_len && (ctx->tcp_flags & (TCP_ACK | TCP_SYN)) != TCP_ACK))
		return DROP_TLS_MALFORMED;
	return 0;
}

/* While the first message is read: as tls_decide. */
INLINE int tls_follow(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w, struct tls_conn *conn,
		      const struct name_table *table, bool audit)
{
	int reason = 0;

	if (conn->mode == TLS_REFUSED)
		return TLS_MORE;
	if (__sync_val_compare_and_swap(&conn->busy, 0, 1))
		return TLS_MORE;
	w->expected = conn->start + conn->have;
	if (conn->mode == TLS_PASSED && (s32)(conn->acked - conn->start - conn->decided) >= 0)
		tls_settle(ctx, w, conn, table);
	else
		reason = tls_decide(skb, ctx, w, conn, table, audit);
	conn->busy = 0;
	return reason;
}

INLINE int tls_handle(struct __sk_buff *skb, struct pkt_ctx *ctx, struct tls_work *w)
{
	struct endpoint_info *pod = endpoint_by_id(ctx->direction == DIR_EGRESS ? ctx->src_endpoint : ctx->dst_endpoint);
	struct names_config *cfg = names_configuration();
	struct name_table *table = name_table_of(cfg);
	struct tls_server *server;
	struct tls_conn *conn;
	int reason = tls_check_segment(ctx);
	bool audit;

	if (!cfg || !table || !pod)
		return -DROP_EP_NOT_READY;
	if (reason)
		return -reason;
	if (!ctx->payload_len)
		return tls_onward(skb, ctx);
	audit = pod->flags & ENDPOINT_F_AUDIT;
	__builtin_memset(&w->server, 0, sizeof(w->server));
	w->expected = ctx->tcp_seq;
	conn = tls_conns.lookup(&ctx->key);
	server = conn ? NULL : tls_servers.lookup(&ctx->key);
	if (conn) {
		reason = tls_follow(skb, ctx, w, conn, table, audit);
	} else if (server) {
		reason = tls_known(ctx, w, server, table, audit) ? 0 : DROP_TLS_DENIED;
		if (reason)
			tls_emit(ctx, w, reason, false);
	} else if (!audit) {
		/* Older than the rules, or forgotten: whom it talks to only the server knows. */
		reason = DROP_TLS_NO_STATE;
		tls_emit(ctx, w, reason, false);
	}
	if (!reason)
		return tls_onward(skb, ctx);
	if (reason == TLS_MORE)
		return -DROP_TLS_OUT_OF_ORDER;
	count_packet(ctx->direction, reason, ctx->ip_len);
	return tls_reset(skb, ctx, w, w->expected);
}

int tls_hello(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	u32 zero = 0;
	struct tls_work *w = tls_scratch.lookup(&zero);

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return finish(skb, ctx, tls_handle(skb, ctx, w));
}
