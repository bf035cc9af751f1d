/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One DNS message at hand: read as far as its question, told, and made over. */
#pragma once
#include "dns.h"
#include "dns_event.h"

enum {
	DNS_REPLY = DNS_HEADER + DNS_QUESTION_MAX + DNS_OPT_LENGTH, /* bytes of an answer of the kernel's own */
};
_Static_assert(DNS_REPLY + 4 <= DNS_LOADED, "what follows it is set to zero");

/* What a datagram must be like to mean one message only. */
INLINE int dns_check_datagram(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	struct l4_header udp;

	if (ctx->flags & CTX_F_FRAGMENT)
		return DROP_IP_FRAGMENTATION_NOT_SUPPORTED;
	/* IP options and extension headers: answers are built without. Segments of a super-packet are one message each. */
	if (ctx->l4_off != L3_OFF + (ctx->family == 4 ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header)) ||
	    skb->gso_size)
		return DROP_DNS_MALFORMED;
	if (bpf_skb_load_bytes(skb, ctx->l4_off, &udp, sizeof(udp)))
		return DROP_DNS_MALFORMED;
	/* The receiver reads what UDP says, not what IP says. */
	return bpf_ntohs(udp.length) == ctx->payload_len + sizeof(udp) ? 0 : DROP_DNS_MALFORMED;
}

/* The beginning of the message at w->base, of which `length` bytes are there; 0 or a drop reason. */
INLINE int dns_load_at(struct __sk_buff *skb, struct dns_work *w, u64 length)
{
	if (length < DNS_HEADER)
		return DROP_DNS_MALFORMED;
	if (length > DNS_LOADED)
		length = DNS_LOADED;
	/* The verifier wants to see the bounds in the very register that the helper gets. */
	length -= 1;
	asm volatile("%0 &= 511" : "+r"(length));
	length += 1;
	w->have = length;
	w->kept = 0;
	if (length > sizeof(w->message) || bpf_skb_load_bytes(skb, w->base, w->message, length))
		return DROP_DNS_MALFORMED;
	return 0;
}

/* The same of a datagram. */
INLINE int dns_load(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct dns_work *w)
{
	w->base = ctx->payload_off;
	w->length = ctx->payload_len;
	return dns_load_at(skb, w, ctx->payload_len);
}

INLINE u16 dns_u16(const u8 *bytes)
{
	return (bytes[0] << 8) | bytes[1];
}

/* The question: name, type, class. w->at is behind it. */
INLINE int dns_read_question(struct dns_work *w, const struct name_table *table, u32 start, u64 seed)
{
	u64 place;
	u32 at;

	w->at = DNS_HEADER;
	w->state = name_start(table, start);
	if (!dns_read_name(w, table))
		return DROP_DNS_MALFORMED;
	at = w->at;
	if (at + 4 > w->have || at > 400)
		return DROP_DNS_MALFORMED;
	place = BOUNDED(at, 511);
	if (place > 508)
		return DROP_DNS_MALFORMED;
	w->qtype = dns_u16(&w->message[place]);
	w->qclass = dns_u16(&w->message[place + 2]);
	w->at = at + 4;
	w->hash = name_hash(w->name, w->name_len, seed);
	return 0;
}

/* A query of one name, and nothing but that. */
INLINE bool dns_is_question(const struct dns_work *w)
{
	const struct dns_header *header = (void *)w->message;

	if ((header->flags & (DNS_QR | DNS_OPCODE | DNS_TC)) || header->questions != bpf_htons(1) || header->answers)
		return false;
	/* An incremental transfer says which version the asker has (RFC 1995, 3). */
	return !header->authorities || (w->qtype == DNS_IXFR && header->authorities == bpf_htons(1));
}

INLINE void dns_emit(struct pkt_ctx *ctx, struct dns_work *w, u8 type, u8 reason, bool audited)
{
	struct name_event *e;
	int i;

	if (!w->name_len)
		return; /* an answer that does not repeat its question */
	e = name_event_begin(ctx, type, reason, audited);
	if (!e)
		return;
	e->id = bpf_ntohs(w->id);
	e->qtype = w->qtype;
	e->rcode = w->rcode;
	e->name_len = w->name_len;
	if (type == EVENT_DNS_ANSWER) {
		e->ttl = w->ttl;
		e->answers = w->addresses;
		e->latency_us = (precise_now(ctx) - w->asked_ns) / 1000;
		e->aliases_len = w->aliases_len;
		if (w->aliases_len)
			__builtin_memcpy(e->aliases, w->alias_names, sizeof(e->aliases));
#pragma unroll
		for (i = 0; i < NAME_EVENT_ADDRESSES; i++)
			if (i < w->addresses)
				e->addresses[i] = w->found[i];
	}
	__builtin_memcpy(e->name, w->name, sizeof(e->name));
	name_events.ringbuf_submit(e, wakeup_flags(ctx));
}

/* A query with EDNS is answered with EDNS (RFC 6891, 7): its OPT record, if it comes right behind the question, stays,
 * without options. */
INLINE void dns_keep_opt(struct dns_work *w)
{
	struct dns_header *header = (void *)w->message;
	u32 at = w->at;
	u8 *opt;

	if (at + DNS_OPT_LENGTH > w->have || at > DNS_HEADER + DNS_QUESTION_MAX)
		return;
	opt = &w->message[BOUNDED(at, 511)];
	if (opt[0] || opt[1] || opt[2] != DNS_OPT)
		return;
	opt[3] = DNS_UDP_SIZE >> 8;
	opt[4] = DNS_UDP_SIZE & 0xff;
	opt[5] = 0; /* upper bits of the rcode */
	opt[6] = 0; /* version */
	opt[7] &= 0x80; /* DO, RFC 3225, 3 */
	opt[8] = 0;
	opt[9] = 0;
	opt[10] = 0;
	header->additional = bpf_htons(1);
	w->at = at + DNS_OPT_LENGTH;
}

/* The message at hand becomes an answer with its question only: REFUSED, or cut to nothing. w->at is its end. */
INLINE void dns_turn(struct dns_work *w, bool refused)
{
	struct dns_header *header = (void *)w->message;
	bool more = header->additional;

	header->flags = DNS_QR | (header->flags & (DNS_OPCODE | DNS_RD)) | (refused ? 0 : DNS_TC);
	header->code = refused ? (header->code & DNS_CD) | DNS_REFUSED : header->code & ~DNS_RCODE;
	header->answers = 0;
	header->authorities = 0;
	header->additional = 0;
	if (refused && more)
		dns_keep_opt(w);
}

/* Make the packet at hand a message that has the question only: REFUSED towards who asked (`turn`), or the answer cut
 * to nothing, so that the question is asked again by TCP. 0 or a drop reason. */
INLINE int dns_rebuild(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w, bool turn)
{
	struct addr from = ctx->saddr, to = turn ? ctx->saddr : ctx->daddr;
	u16 sport = ctx->sport, dport = turn ? ctx->sport : ctx->dport;
	u32 length, i, l3;
	u8 *l4 = own_l4(&w->own, ctx);
	struct l4_header *udp = (void *)l4;

	dns_turn(w, turn);
	length = w->at;
	if (length > DNS_REPLY)
		return DROP_DNS_MALFORMED;
	if (turn)
		own_server(ctx, &from, &sport);
#pragma unroll
	for (i = 0; i < 4; i++)
		w->message[BOUNDED(length + i, 511)] = 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < DNS_LOADED / 4; i++)
		((u32 *)(l4 + sizeof(*udp)))[i] = ((u32 *)w->message)[i];
	udp->sport = sport;
	udp->dport = dport;
	udp->length = bpf_htons(sizeof(*udp) + length);
	udp->checksum = 0xffff;
	l3 = own_build_l3(&w->own, ctx, &from, &to, sizeof(*udp) + length);
	return own_store(skb, &w->own, ctx, l3, sizeof(*udp) + length, __builtin_offsetof(struct l4_header, checksum));
}
