/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The ClientHello: where the server's name is in it, and what rules say to that name (RFC 8446, 4.1.2; RFC 6066, 3). */
#pragma once
#include "names.h"
#include "own_segment.h"
#include "tls.h"

enum {
	TLS_HANDSHAKE = 22,
	TLS_CLIENT_HELLO = 1,
	TLS_SESSION_AT = 43, /* record header 5, handshake header 4, version 2, random 32 */
	TLS_NAME_MAX = 253,
	TLS_MORE = -1, /* the rest has not come yet */
};

struct tls_work {
	struct pkt_ctx saved;
	u32 at; /* next byte of the message */
	u32 end; /* of the extensions */
	u32 name_at;
	u32 name_len; /* on the wire */
	u32 length;   /* canonical: with a final dot */
	u32 state;
	u32 left; /* bytes still to compare; of a name: the character before */
	u32 expected; /* the server's next byte */
	struct tls_server server;
	u8 buffer[TLS_WINDOW];
	struct own_tcp own;
};

PERCPU_MAP(tls_scratch, struct tls_work, 1);

INLINE u32 tls_u8(const struct tls_conn *conn, u32 at)
{
	return conn->bytes[BOUNDED(at, TLS_WINDOW - 1)];
}

INLINE u32 tls_u16(const struct tls_conn *conn, u32 at)
{
	return tls_u8(conn, at) << 8 | tls_u8(conn, at + 1);
}

/* Up to the extensions: 0, TLS_MORE or a drop reason. The whole message must be in one record: no client divides it, and
 * whoever does wants to be read differently by the two who listen. */
INLINE int tls_read_head(struct tls_work *w, const struct tls_conn *conn)
{
	u32 record, message, at;

	if (conn->have >= 1 && tls_u8(conn, 0) != TLS_HANDSHAKE)
		return DROP_TLS_MALFORMED;
	if (conn->have >= 2 && tls_u8(conn, 1) != 3)
		return DROP_TLS_MALFORMED;
	if (conn->have >= 6 && tls_u8(conn, 5) != TLS_CLIENT_HELLO)
		return DROP_TLS_MALFORMED;
	if (conn->have < TLS_SESSION_AT + 1)
		return TLS_MORE;
	record = tls_u16(conn, 3);
	message = tls_u8(conn, 6) << 16 | tls_u16(conn, 7);
	if (record > 16384 || message + 4 > record)
		return DROP_TLS_MALFORMED;
	at = TLS_SESSION_AT + 1 + tls_u8(conn, TLS_SESSION_AT);
	if (at + 2 > conn->have)
		return TLS_MORE;
	at += 2 + tls_u16(conn, at); /* cipher suites */
	if (at >= TLS_WINDOW)
		return DROP_TLS_MALFORMED;
	if (at + 1 > conn->have)
		return TLS_MORE;
	at += 1 + tls_u8(conn, at); /* compression methods */
	if (at + 2 > 9 + message)
		return DROP_TLS_DENIED; /* no extensions: no name */
	if (at + 2 > conn->have)
		return at + 2 > TLS_WINDOW ? DROP_TLS_MALFORMED : TLS_MORE;
	w->at = at + 2;
	w->end = w->at + tls_u16(conn, at);
	return w->end == 9 + message ? 0 : DROP_TLS_MALFORMED;
}

/* The name in the extension at w->at, which has `length` bytes: one name, of a host. */
INLINE int tls_read_server(struct tls_work *w, const struct tls_conn *conn, u32 length)
{
	u32 at = w->at + 4;

	if (at + length > TLS_WINDOW)
		return DROP_TLS_MALFORMED;
	if (at + length > conn->have)
		return TLS_MORE;
	if (length < 6 || tls_u16(conn, at) != length - 2 || tls_u8(conn, at + 2) || tls_u16(conn, at + 3) != length - 5)
		return DROP_TLS_MALFORMED;
	w->name_at = at + 5;
	w->name_len = length - 5;
	return w->name_len > TLS_NAME_MAX ? DROP_TLS_MALFORMED : 0;
}

/* Look for the name among the extensions: 0, TLS_MORE, or a drop reason. */
INLINE int tls_find_server(struct tls_work *w, const struct tls_conn *conn)
{
	u32 i, type, length;

#pragma clang loop unroll(disable)
	for (i = 0; i < TLS_EXTENSIONS; i++) {
		asm volatile("" ::: "memory");
		if (w->at == w->end)
			return DROP_TLS_DENIED; /* nobody is named */
		if (w->at + 4 > w->end || w->at + 4 > TLS_WINDOW)
			return DROP_TLS_MALFORMED;
		if (w->at + 4 > conn->have)
			return TLS_MORE;
		type = tls_u16(conn, w->at);
		length = tls_u16(conn, w->at + 2);
		if (w->at + 4 + length > w->end)
			return DROP_TLS_MALFORMED;
		if (!type)
			return tls_read_server(w, conn, length);
		w->at += 4 + length;
	}
	return DROP_TLS_MALFORMED;
}

/* Canonical form and automaton in one walk: 0 or a drop reason. */
INLINE int tls_match(struct tls_work *w, const struct tls_conn *conn, const struct name_table *table, u32 ruleset)
{
	u32 i;
	u8 c, before = '.';

	__builtin_memset(&w->server, 0, sizeof(w->server));
	w->state = name_start(table, ruleset);
	w->length = 0;
	w->left = '.';
#pragma clang loop unroll(disable)
	for (i = 0; i < TLS_NAME_MAX + 1; i++) {
		asm volatile("" ::: "memory");
		before = w->left;
		if (i >= w->name_len) {
			if (before == '.' && i)
				break; /* it came with a final dot */
			c = '.';
		} else {
			c = name_fold(tls_u8(conn, w->name_at + i));
		}
		if (!c || (c == '.' && before == '.'))
			return DROP_TLS_MALFORMED;
		w->server.name[BOUNDED(i, NAME_BYTES - 1)] = c;
		w->state = name_next(table, w->state, c);
		w->length = i + 1;
		w->left = c;
		if (i >= w->name_len)
			break;
	}
	w->server.length = w->length;
	w->server.ruleset = ruleset;
	return w->state & NAME_ACCEPT ? 0 : DROP_TLS_DENIED;
}

/* The same for a name that was read before, when rules have changed. */
INLINE bool tls_match_again(struct tls_work *w, const struct tls_server *server, const struct name_table *table, u32 ruleset)
{
	u32 i;

	w->state = name_start(table, ruleset);
#pragma clang loop unroll(disable)
	for (i = 0; i < TLS_NAME_MAX + 1; i++) {
		asm volatile("" ::: "memory");
		if (i >= server->length)
			break;
		w->state = name_next(table, w->state, server->name[BOUNDED(i, NAME_BYTES - 1)]);
	}
	return w->state & NAME_ACCEPT;
}
