/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TLS connections of pods under rules about server names: the client's first message, read as it passes.
 *
 * Keyed by the pod's conntrack key, opened by the server's SYN-ACK. What was read is kept until the server has
 * acknowledged it, so that a repetition cannot say something else. Then only the name is kept. A connection of which
 * nothing is known is reset. */
#pragma once
#include "conntrack.h"
#include "drop_reasons.h"
#include "l7.h"
#include "names.h"

enum {
	TLS_WINDOW = 2048,   /* bytes of the first message that are read; the server's name must be within */
	TLS_BEYOND = 288,    /* bytes that may be read or written behind them: a question of DNS_LOADED, or a piece */
	TLS_EXTENSIONS = 64, /* of it that are looked at */
};

enum tls_mode {
	TLS_READING = 0,
	TLS_PASSED = 1,
	TLS_REFUSED = 2,
	TLS_ANSWERED = 3, /* DNS: refused with an answer, which is in `bytes` */
};

struct tls_conn {
	u64 busy;    /* a program works on it; the packet that comes second is dropped and sent again */
	u32 start;   /* sequence number of the client's first byte */
	u32 have;    /* bytes from there on that passed and are in `bytes` */
	u32 acked;   /* highest byte that the server has acknowledged */
	u32 decided; /* bytes that the verdict rests on */
	u32 ruleset; /* that decided */
	u32 mode;    /* enum tls_mode */
	/* DNS over TCP only (dns_stream_ask.c). */
	u64 held_ns; /* when the answer had to wait for the first time */
	u32 asked;   /* questions that passed */
	u32 answer;  /* sequence number of the answer's first byte ... */
	u32 length;  /* ... and its length */
	u32 next;    /* the client's next byte after its answer */
	u32 told;    /* sequence number that the server was reset with */
	u32 pad;
	u8 bytes[TLS_WINDOW + TLS_BEYOND]; /* what lies beyond the window is never looked at */
};

/* The server that an open connection named. */
struct tls_server {
	u32 ruleset; /* that allowed it */
	u32 length;
	u8 name[NAME_BYTES];
};
_Static_assert(sizeof(struct tls_server) == 264, "tls_server");

BPF_F_TABLE("lru_hash", struct ct_key, struct tls_conn, tls_conns, 2048, 0);
BPF_F_TABLE("lru_hash", struct ct_key, struct tls_server, tls_servers, 16384, 0);
PERCPU_MAP(tls_fresh, struct tls_conn, 1);

/* The server's packets: its SYN-ACK begins a connection, its acknowledgements say what it has. */
INLINE void tls_heard(struct pkt_ctx *ctx)
{
	struct tls_conn *conn = tls_conns.lookup(&ctx->key);
	u32 zero = 0;

	if (unlikely((ctx->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))) {
		if (conn && conn->start == ctx->tcp_ack)
			return; /* repeated */
		conn = tls_fresh.lookup(&zero);
		if (!conn)
			return;
		conn->start = ctx->tcp_ack;
		conn->acked = ctx->tcp_ack;
		tls_conns.update(&ctx->key, conn);
		tls_servers.delete(&ctx->key);
		return;
	}
	if (conn && (ctx->tcp_flags & (TCP_ACK | TCP_RST)) == TCP_ACK && (s32)(ctx->tcp_ack - conn->acked) > 0)
		conn->acked = ctx->tcp_ack;
}
