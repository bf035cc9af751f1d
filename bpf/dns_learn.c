/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Answers of DNS: what they teach.
 *
 * dns_records (tail call of dns_answer): addresses and TTLs
 * dns_learn   (tail call of that):       learned, told, and only then delivered
 *
 * Over TCP dns_stream_hear does both, so that an answer costs one tail call. */
#include "lib/deliver.h"
#include "lib/dns_alias.h"
#include "lib/dns_message.h"
#include "lib/tailcall.h"

/* One step: over a label of an owner's name, or through the fixed part and over the data. 0 or a drop reason. */
INLINE int dns_step(struct __sk_buff *skb, struct dns_work *w, const struct dns_kept *kept)
{
	u32 at = w->at, type, length, ttl;
	u8 label;

	if (at + 1 > w->length || at > 0xffff)
		return DROP_DNS_MALFORMED;
	if (!w->skipped) {
		if (!dns_bytes(skb, w, kept, at, &label, 1))
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
	if (at + 10 > w->length || !dns_bytes(skb, w, kept, at, w->record, 10))
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
	if (type == DNS_CNAME) {
		if (w->aliases < DNS_ALIASES) {
			w->alias_at[BOUNDED(w->aliases, DNS_ALIASES - 1)] = at + 10;
			w->aliases += 1;
		}
		return 0;
	}
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

		if (!dns_bytes(skb, w, kept, at + 10, &ip, 4))
			return DROP_DNS_MALFORMED;
		addr_set_v4(found, ip);
	} else if (!dns_bytes(skb, w, kept, at + 10, found, 16)) {
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

/* The answer at hand is learned, then told. 0 or a drop reason, which is counted. */
INLINE int dns_learn_and_tell(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	struct names_config *cfg = names_configuration();
	int reason = cfg ? dns_learn_all(ctx, w, cfg) : DROP_EP_NOT_READY;

	if (w->ttl == ~0U)
		w->ttl = 0;
	if (w->aliases)
		dns_read_aliases(skb, ctx, w);
	dns_emit(ctx, w, EVENT_DNS_ANSWER, reason, false);
	if (reason)
		count_packet(DIR_INGRESS, reason, ctx->ip_len);
	return reason;
}

int dns_learn(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *w = dns_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	if (dns_learn_and_tell(skb, ctx, w))
		return TC_ACT_SHOT;
	return deliver_to_endpoint(skb, ctx);
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
	struct dns_kept *kept = w->kept ? dns_kept.lookup(&ctx->key) : NULL;
	int i, reason = 0;

	if (w->kept && !kept)
		return -DROP_DNS_NO_STATE;
#pragma clang loop unroll(disable)
	for (i = 0; i < DNS_STEPS; i++) {
		asm volatile("" ::: "memory");
		if (!w->records)
			break;
		reason = dns_step(skb, w, kept);
		if (reason)
			break;
	}
	if (reason == DROP_DNS_TOO_LARGE)
		return dns_cut(skb, ctx, w);
	if (reason)
		return -reason;
	w->pending = 1;
	tailcalls.call(skb, w->records ? TAIL_DNS_RECORDS :
			    ctx->protocol == PROTO_TCP ? TAIL_DNS_STREAM_HEAR :
							 TAIL_DNS_LEARN);
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
