/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the L3/L4 programs call of the HTTP programs inline: the server's own packets, where they leave the pod whose
 * ingress has rules, or reach the pod whose egress has.
 *
 * They are the witness of what the server has: its SYN-ACK opens a connection's state (a client's SYN alone proves
 * nothing: on an open connection the server answers it with a challenge and goes on), and its acknowledgements say
 * what has arrived. The socket's rcv_nxt would not: it lags while packets wait in the socket's backlog. */
#pragma once
#include "drop_reasons.h"
#include "http_event.h"
#include "http_grammar.h"
#include "http_tables.h"
#include "parse.h"

/* Packets that the kernel sends in the server's name. Pods cannot set it: the mark is cleared when a packet changes
 * network namespace. */
#define HTTP_MARK_ANSWER 0xc1110004

INLINE void http_open(struct pkt_ctx *ctx)
{
	struct http_config *cfg = http_configuration();
	struct ct_entry *entry = ct.lookup(&ctx->key);
	struct http_conn *conn;
	u32 zero = 0;
	int i;

	conn = http_fresh.lookup(&zero);
	if (!conn || !cfg)
		return;
	__builtin_memset(conn, 0, sizeof(*conn));
	/* Even, and never that of an earlier connection: a program that still works on that one publishes nothing. */
	conn->version = ((u64)bpf_get_prandom_u32() << 32) | (bpf_get_prandom_u32() & ~1U);
	conn->acked = ctx->tcp_ack;
	conn->first = ctx->tcp_ack;
	conn->opened = ctx->tcp_seq;
	conn->watched = entry && (entry->flags & CT_F_UNREAD);
	conn->flow.now.seq = ctx->tcp_ack;
	conn->flow.now.phase = HTTP_PHASE_START;
	conn->flow.body_start = ctx->tcp_ack;
	conn->flow.body_end = ctx->tcp_ack;
#pragma unroll
	for (i = 0; i < HTTP_HOLES; i++)
		conn->flow.holes[i].end = ctx->tcp_ack;
	conn->flow.grammar = cfg->grammar;
	conn->flow.hash = ((u64)bpf_get_prandom_u32() << 32) | bpf_get_prandom_u32();
	http_conns.update(&ctx->key, conn);
}

#define HTTP_STATUS_LINE 12 /* "HTTP/1.1 200" */
#define HTTP_STATUS_UPGRADE 101

/* The head of a response, where one is waited for: a packet that begins with a status line. */
INLINE void http_response(struct __sk_buff *skb, struct pkt_ctx *ctx, struct http_conn *conn)
{
	u64 line[2] = {};
	u8 *text = (u8 *)line;
	u32 i, status = 0;

	if (ctx->payload_len < HTTP_STATUS_LINE || bpf_skb_load_bytes(skb, ctx->payload_off, line, HTTP_STATUS_LINE))
		return;
	if ((line[0] | bpf_htonll(1)) != HTTP_VERSION_11 || text[8] != ' ')
		return;
#pragma unroll
	for (i = 9; i < HTTP_STATUS_LINE; i++) {
		if (text[i] < '0' || text[i] > '9')
			return;
		status = status * 10 + text[i] - '0';
	}
	if (status < 200 && status != HTTP_STATUS_UPGRADE) /* announces another one */
		return;
	/* Only the first bytes of a connection's two streams are known to be a request's and its response's: later ones
	 * could be a body that looks so. */
	if (status == HTTP_STATUS_UPGRADE && conn->asked.upgrade && conn->asked.line_seq == conn->first &&
	    ctx->tcp_seq == conn->opened + 1)
		conn->tunnel = 1;
	http_settle(ctx, conn, true, status);
}

/* Note a FIN; forget the connection with the packet behind the second one. What is forgotten lets no data pass. */
INLINE bool http_closes(const struct pkt_ctx *ctx, struct http_conn *conn, u8 whose)
{
	if (likely(!(ctx->tcp_flags & TCP_FIN) && conn->fins != HTTP_FIN_BOTH))
		return false;
	if (ctx->tcp_flags & TCP_FIN) {
		conn->fins |= whose;
		return false;
	}
	if (ctx->payload_len || conn->flow.mode == HTTP_ANSWERED || conn->flow.mode == HTTP_RESET)
		return false;
	http_conns.delete(&ctx->key);
	return true;
}

/* A packet from a server to its client on a connection under HTTP policy; ctx->key is the conntrack key of the endpoint
 * that has the policy. Returns 0 or a drop reason. */
INLINE int http_reply_hook(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct http_conn *conn;

	if (skb->mark == HTTP_MARK_ANSWER)
		return 0;
	conn = http_conns.lookup(&ctx->key);
	if (unlikely(ctx->tcp_flags & TCP_SYN)) {
		/* The repetition of a SYN-ACK is no new connection: the client may have gone on. */
		if ((ctx->tcp_flags & TCP_ACK) && (!conn || conn->first != ctx->tcp_ack || conn->opened != ctx->tcp_seq))
			http_open(ctx);
		return 0;
	}
	if (!conn)
		return 0;
	if (unlikely(conn->cut) && ctx->payload_len) {
		conn->heard_seq = ctx->tcp_seq + ctx->payload_len;
		conn->heard_ns = ctx->now_ns;
	}
	if (conn->asked.waiting == HTTP_WAITS) {
		http_response(skb, ctx, conn);
		if (unlikely(ctx->tcp_flags & (TCP_FIN | TCP_RST)))
			http_settle(ctx, conn, true, 0);
	}
	if ((ctx->tcp_flags & (TCP_ACK | TCP_RST)) != TCP_ACK)
		return 0;
	/* The kernel has answered in the server's place: what it still says would contradict. */
	if (unlikely(conn->flow.mode == HTTP_ANSWERED || conn->flow.mode == HTTP_RESET))
		return DROP_HTTP_CLOSED;
	if ((s32)(ctx->tcp_ack - conn->acked) > 0)
		conn->acked = ctx->tcp_ack;
	http_closes(ctx, conn, HTTP_FIN_SERVER);
	return 0;
}
