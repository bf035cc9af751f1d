/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* DNS rules: what pods may ask, and what the answers teach.
 *
 * dns_query   (tail call of from_endpoint): the name of a question -> its rule set -> on its way, or REFUSED
 * dns_answer  (tail call of ingress):       an answer to a question that this pod asked? Then its records:
 * dns_records (tail call of that):          addresses and TTLs
 * dns_learn   (tail call of that):          learned, told, and only then delivered */
#include "lib/deliver.h"
#include "lib/dns.h"
#include "lib/dns_event.h"
#include "lib/tailcall.h"
#include "lib/tls.h"

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

INLINE void dns_emit(struct pkt_ctx *ctx, struct dns_work *w, u8 type, u8 reason, bool audited)
{
	struct name_event *e = name_event_begin(ctx, type, reason, audited);
	int i;

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
#pragma unroll
		for (i = 0; i < NAME_EVENT_ADDRESSES; i++)
			if (i < w->addresses)
				e->addresses[i] = w->found[i];
	}
	__builtin_memcpy(e->name, w->name, sizeof(e->name));
	name_events.ringbuf_submit(e, wakeup_flags(ctx));
}

/* Make the packet at hand a message that has the question only: REFUSED towards who asked (`turn`), or the answer cut
 * to nothing, so that the question is asked again by TCP. 0 or a drop reason. */
INLINE int dns_rebuild(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w, bool turn)
{
	struct dns_header *header = (void *)w->message;
	struct addr from = turn ? ctx->daddr : ctx->saddr, to = turn ? ctx->saddr : ctx->daddr;
	u16 sport = turn ? ctx->dport : ctx->sport, dport = turn ? ctx->sport : ctx->dport;
	u32 length = w->at, i, l3;
	u8 *l4 = own_l4(&w->own, ctx);
	struct l4_header *udp = (void *)l4;

	if (length > DNS_HEADER + DNS_QUESTION_MAX)
		return DROP_DNS_MALFORMED;
	header->flags = DNS_QR | (header->flags & (DNS_OPCODE | DNS_RD)) | (turn ? 0 : DNS_TC);
	header->code = turn ? (header->code & DNS_CD) | DNS_REFUSED : header->code & ~DNS_RCODE;
	header->answers = 0;
	header->authorities = 0;
	header->additional = 0;
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

INLINE int dns_refuse(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	int reason;

	dns_emit(ctx, w, EVENT_DNS_QUERY, DROP_DNS_DENIED, false);
	count_packet(DIR_EGRESS, DROP_DNS_DENIED, ctx->ip_len);
	reason = dns_rebuild(skb, ctx, w, true);
	return reason ? -reason : own_return(skb, ctx);
}

/* Remember the question: the answer is believed only if it was asked. */
INLINE bool dns_remember(struct pkt_ctx *ctx, const struct dns_work *w)
{
	struct dns_asked_key key = { .connection = ctx->key, .id = w->id };
	struct dns_asked asked = {
		.name = w->hash, .asked_ns = precise_now(ctx), .qtype = w->qtype, .qclass = w->qclass,
	};

	return !dns_asked.update(&key, &asked);
}

INLINE bool dns_is_question(const struct dns_header *header)
{
	return !(header->flags & (DNS_QR | DNS_OPCODE | DNS_TC)) && header->questions == bpf_htons(1) && !header->answers &&
	       !header->authorities;
}

INLINE int dns_ask(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	struct endpoint_info *pod = endpoint_by_id(ctx->src_endpoint);
	struct names_config *cfg = names_configuration();
	struct name_table *table = name_table_of(cfg);
	bool allowed, audit;
	int reason;

	if (!cfg || !table || !pod)
		return -DROP_EP_NOT_READY;
	audit = pod->flags & ENDPOINT_F_AUDIT;
	if (ctx->protocol == PROTO_TCP) {
		reason = tls_check_segment(ctx);
		if (reason || (ctx->payload_len && (ctx->tcp_flags & TCP_SYN)))
			return -DROP_DNS_MALFORMED;
		w->continuing = 0;
		tailcalls.call(skb, ctx->payload_len ? TAIL_DNS_STREAM_ASK : TAIL_FORWARD);
		return -DROP_MISSED_TAIL_CALL;
	}
	reason = dns_check_datagram(skb, ctx);
	if (!reason)
		reason = dns_load(skb, ctx, w);
	if (!reason && !dns_is_question((void *)w->message))
		reason = DROP_DNS_MALFORMED;
	if (!reason)
		reason = dns_read_question(w, table, ctx->l7_ruleset, cfg->seed);
	if (reason)
		return -reason;
	w->id = ((struct dns_header *)w->message)->id;
	w->rcode = 0;
	allowed = w->state & NAME_ACCEPT;
	if (!allowed && !audit)
		return dns_refuse(skb, ctx, w);
	if (!dns_remember(ctx, w))
		return -DROP_CT_MAP_INSERTION_FAILED;
	dns_emit(ctx, w, EVENT_DNS_QUERY, allowed ? 0 : DROP_DNS_DENIED, !allowed);
	tailcalls.call(skb, TAIL_FORWARD);
	return -DROP_MISSED_TAIL_CALL;
}

int dns_query(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *w = dns_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return finish(skb, ctx, dns_ask(skb, ctx, w));
}

/* One step: over a label of an owner's name, or through the fixed part and over the data. 0 or a drop reason. */
INLINE int dns_step(struct __sk_buff *skb, const struct pkt_ctx *ctx, struct dns_work *w)
{
	u32 at = w->at, type, length, ttl;
	u8 label;

	if (at + 1 > w->length || at > 0xffff)
		return DROP_DNS_MALFORMED;
	if (!w->skipped) {
		if (bpf_skb_load_bytes(skb, w->base + at, &label, 1))
			return DROP_DNS_MALFORMED;
		if (label >= 0xc0) {
			w->at = at + 2;
			w->skipped = 1;
		} else if (label > 63) {
			return DROP_DNS_MALFORMED;
		} else {
			w->at = at + 1 + label;
			w->skipped = !label;
		}
		if (!w->skipped)
			return 0;
		at = w->at;
	}
	if (at + 10 > w->length || bpf_skb_load_bytes(skb, w->base + at, w->record, 10))
		return DROP_DNS_MALFORMED;
	type = dns_u16(w->record);
	length = dns_u16(w->record + 8);
	if (at + 10 + length > w->length)
		return DROP_DNS_MALFORMED;
	w->at = at + 10 + length;
	w->records -= 1;
	w->skipped = 0;
	if (dns_u16(w->record + 2) != DNS_IN || (type != DNS_A && type != DNS_AAAA && type != DNS_CNAME))
		return 0;
	ttl = (dns_u16(w->record + 4) << 16) | dns_u16(w->record + 6);
	if (ttl > 0x7fffffff)
		ttl = 0; /* RFC 2181 */
	if (ttl < w->ttl)
		w->ttl = ttl;
	if (type == DNS_CNAME)
		return 0;
	if (length != (type == DNS_A ? 4 : 16))
		return DROP_DNS_MALFORMED;
	if (w->addresses >= DNS_ADDRESSES) {
		/* Nobody's policy needs them: they need not be learned. */
		return w->identity ? DROP_DNS_TOO_LARGE : 0;
	}
	u64 place = BOUNDED(w->addresses, DNS_ADDRESSES - 1);
	struct addr *found = &w->found[place];

	if (type == DNS_A) {
		u32 ip;

		if (bpf_skb_load_bytes(skb, w->base + at + 10, &ip, 4))
			return DROP_DNS_MALFORMED;
		addr_set_v4(found, ip);
	} else if (bpf_skb_load_bytes(skb, w->base + at + 10, found, 16)) {
		return DROP_DNS_MALFORMED;
	}
	w->addresses = place + 1;
	return 0;
}

/* The name's entry; 0 or a drop reason (another name has its hash). */
INLINE int dns_learn_name(struct dns_work *w, u64 now, u64 expires)
{
	struct fqdn_name *entry = fqdn_names.lookup(&w->hash), *fresh;
	u32 zero = 0;

	if (!entry) {
		fresh = fqdn_fresh.lookup(&zero);
		if (!fresh)
			return DROP_DNS_NO_STATE;
		fresh->learned_ns = now;
		fresh->expires_ns = expires;
		fresh->identity = w->identity;
		fresh->ttl = w->ttl;
		fresh->length = w->name_len;
		fresh->pad = 0;
		__builtin_memcpy(fresh->name, w->name, NAME_BYTES);
		fqdn_names.insert(&w->hash, fresh);
		entry = fqdn_names.lookup(&w->hash);
		if (!entry)
			return DROP_DNS_NO_STATE;
	}
	if (!name_equal(entry->name, w->name))
		return DROP_DNS_NO_STATE;
	entry->learned_ns = now;
	entry->ttl = w->ttl;
	if (expires > entry->expires_ns)
		entry->expires_ns = expires;
	entry->identity = w->identity;
	return 0;
}

/* Give the address at `ip` the name w->hash. A slot is taken by compare-and-swap: another CPU may learn another name of
 * the same address. What the search finds is kept in memory, so that the verifier sees one iteration, not all. */
INLINE bool dns_take_slot(struct dns_work *w, struct fqdn_ip *ip)
{
	struct fqdn_slot *slot;
	u64 taken, expires = w->expires_ns;
	u32 i;

	w->oldest_ns = ~0ULL;
	w->slot = 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < FQDN_SLOTS; i++) {
		asm volatile("" ::: "memory");
		slot = &ip->slots[BOUNDED(i, FQDN_SLOTS - 1)];
		if (slot->name == w->hash) {
			if ((slot->expires_ns & ~FQDN_CONCERNS) < (expires & ~FQDN_CONCERNS) ||
			    ((slot->expires_ns ^ expires) & FQDN_CONCERNS))
				slot->expires_ns = expires;
			return true;
		}
		if (slot->expires_ns < w->oldest_ns) {
			w->oldest_ns = slot->expires_ns;
			w->slot = i;
		}
	}
	/* A name that concerns nobody displaces none that does. */
	if ((w->oldest_ns & FQDN_CONCERNS) && !(expires & FQDN_CONCERNS))
		return true;
	slot = &ip->slots[BOUNDED(w->slot, FQDN_SLOTS - 1)];
	taken = slot->name;
	if (__sync_val_compare_and_swap(&slot->name, taken, w->hash) != taken)
		return false;
	slot->expires_ns = expires;
	return true;
}

INLINE bool dns_learn_address(struct dns_work *w, const struct addr *address)
{
	struct fqdn_ip *ip = fqdn_ips.lookup(address), *fresh;
	u32 zero = 0;

	if (!ip) {
		fresh = fqdn_ip_fresh.lookup(&zero);
		if (!fresh)
			return false;
		fresh->slots[0].name = w->hash;
		fresh->slots[0].expires_ns = w->expires_ns;
		if (!fqdn_ips.insert(address, fresh))
			return true;
		ip = fqdn_ips.lookup(address); /* another CPU was faster */
	}
	return ip && dns_take_slot(w, ip);
}

/* All records are read: learn, if there is something to learn. 0 or a drop reason; the answer passes only afterwards. */
INLINE int dns_learn_all(struct pkt_ctx *ctx, struct dns_work *w, const struct names_config *cfg)
{
	u64 life = (u64)w->ttl * SECOND;
	int i, reason;

	if (w->rcode || !w->addresses || w->qclass != DNS_IN)
		return 0;
	if (life < cfg->min_ttl_ns)
		life = cfg->min_ttl_ns;
	w->expires_ns = ctx->now_ns + life + cfg->grace_ns;
	reason = dns_learn_name(w, ctx->now_ns, w->expires_ns);
	if (reason)
		return reason;
	if (w->identity)
		w->expires_ns |= FQDN_CONCERNS;
#pragma clang loop unroll(disable)
	for (i = 0; i < DNS_ADDRESSES; i++) {
		asm volatile("" ::: "memory");
		if (i >= w->addresses)
			break;
		if (!dns_learn_address(w, &w->found[BOUNDED(i, DNS_ADDRESSES - 1)]))
			return DROP_DNS_NO_STATE;
	}
	return 0;
}

INLINE int dns_learn_and_deliver(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	struct names_config *cfg = names_configuration();
	int reason = cfg ? dns_learn_all(ctx, w, cfg) : DROP_EP_NOT_READY;

	if (w->ttl == ~0U)
		w->ttl = 0;
	dns_emit(ctx, w, EVENT_DNS_ANSWER, reason, false);
	if (reason) {
		count_packet(DIR_INGRESS, reason, ctx->ip_len);
		return TC_ACT_SHOT;
	}
	if (ctx->protocol == PROTO_TCP) {
		tailcalls.call(skb, TAIL_DNS_STREAM_HEAR); /* the next message of the segment */
		return -DROP_MISSED_TAIL_CALL;
	}
	return deliver(skb, ctx);
}

int dns_learn(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *w = dns_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return finish(skb, ctx, dns_learn_and_deliver(skb, ctx, w));
}

/* An answer that cannot be looked at as a whole. If nobody's policy waits for its addresses it passes as it is;
 * otherwise it is cut, and the pod asks again by TCP. */
INLINE int dns_cut(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	struct dns_header *header = (void *)w->message;
	int reason;

	if (ctx->protocol == PROTO_TCP)
		return -DROP_DNS_TOO_LARGE; /* there is nothing larger to ask again by */
	w->at = w->question_end;
	reason = dns_rebuild(skb, ctx, w, false);
	if (reason)
		return -reason;
	w->ttl = 0;
	w->addresses = 0;
	dns_emit(ctx, w, EVENT_DNS_ANSWER, 0, false);
	return deliver(skb, ctx);
}

INLINE int dns_read_records(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	int i, reason = 0;

#pragma clang loop unroll(disable)
	for (i = 0; i < DNS_STEPS; i++) {
		asm volatile("" ::: "memory");
		if (!w->records)
			break;
		reason = dns_step(skb, ctx, w);
		if (reason)
			break;
	}
	if (reason == DROP_DNS_TOO_LARGE)
		return dns_cut(skb, ctx, w);
	if (reason)
		return -reason;
	tailcalls.call(skb, w->records ? TAIL_DNS_RECORDS : TAIL_DNS_LEARN);
	return dns_cut(skb, ctx, w); /* more than tail calls reach */
}

int dns_records(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *w = dns_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return finish(skb, ctx, dns_read_records(skb, ctx, w));
}

/* Is this what the pod waits for? 0 or a drop reason. */
INLINE int dns_match_answer(struct pkt_ctx *ctx, struct dns_work *w, const struct name_table *table, u64 seed)
{
	struct dns_header *header = (void *)w->message;
	struct dns_asked_key key = { .connection = ctx->key, .id = header->id };
	struct dns_asked *asked = dns_asked.lookup(&key);
	int reason;

	if (!asked || precise_now(ctx) - asked->asked_ns > DNS_PATIENCE)
		return DROP_DNS_UNSOLICITED;
	if (!(header->flags & DNS_QR) || header->questions != bpf_htons(1))
		return DROP_DNS_MALFORMED;
	reason = dns_read_question(w, table, NAME_FQDN, seed);
	if (reason)
		return reason;
	if (asked->name != w->hash || asked->qtype != w->qtype || asked->qclass != w->qclass)
		return DROP_DNS_UNSOLICITED;
	w->asked_ns = asked->asked_ns;
	w->id = header->id;
	w->rcode = header->code & DNS_RCODE;
	w->identity = name_identity(table, w->state);
	w->records = bpf_ntohs(header->answers);
	w->question_end = w->at;
	w->addresses = 0;
	w->skipped = 0;
	w->ttl = ~0U;
	return 0;
}

INLINE int dns_hear(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	struct names_config *cfg = names_configuration();
	struct name_table *table = name_table_of(cfg);
	int reason;

	if (skb->mark == OWN_PACKET_MARK)
		return deliver(skb, ctx);
	if (!cfg || !table)
		return -DROP_EP_NOT_READY;
	if (ctx->protocol == PROTO_TCP) {
		w->continuing = 0;
		tailcalls.call(skb, TAIL_DNS_STREAM_HEAR);
		return -DROP_MISSED_TAIL_CALL;
	}
	if (ctx->flags & CTX_F_NO_L4)
		return -DROP_IP_FRAGMENTATION_NOT_SUPPORTED;
	reason = dns_load(skb, ctx, w);
	if (!reason)
		reason = dns_match_answer(ctx, w, table, cfg->seed);
	if (reason)
		return -reason;
	/* The rest of a fragmented answer is somewhere else. */
	if (dns_check_datagram(skb, ctx))
		return dns_cut(skb, ctx, w);
	tailcalls.call(skb, TAIL_DNS_RECORDS);
	return -DROP_MISSED_TAIL_CALL;
}

int dns_answer(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *w = dns_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return finish(skb, ctx, dns_hear(skb, ctx, w));
}
