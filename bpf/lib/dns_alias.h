/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The names that an answer leads over (CNAME), for flows: nothing is decided by them. */
#pragma once
#include "dns.h"

enum { DNS_ALIAS_STEPS = 96 }; /* labels and pointers of all names together */

/* One step of a name at w->at, to the end of w->alias_names: over a label or a pointer. What it returns: 1 go on, 0 the
 * name is over, -1 it is none that can be told. */
INLINE int dns_alias_step(struct __sk_buff *skb, struct dns_work *w, const struct dns_kept *kept)
{
	u32 at = w->at, out = w->aliases_len;
	u64 length;
	u8 label, low;

	if (at >= w->length || at > DNS_KEPT - 2 || out >= NAME_BYTES - 2 || !dns_bytes(skb, w, kept, at, &label, 1))
		return -1;
	if (label >= 0xc0) {
		if (at + 1 >= w->length || !dns_bytes(skb, w, kept, at + 1, &low, 1))
			return -1;
		w->at = (label & 0x3f) << 8 | low;
		return 1;
	}
	if (!label) {
		w->alias_names[BOUNDED(out, NAME_BYTES - 1)] = 0;
		w->aliases_len = out + 1;
		return 0;
	}
	if (label > 63 || at + 1 + label >= w->length || out + label >= NAME_BYTES - 2)
		return -1;
	length = label - 1;
	asm volatile("%0 &= 63" : "+r"(length));
	if (!dns_bytes(skb, w, kept, at + 1, &w->alias_names[BOUNDED(out, NAME_BYTES - 1)], length + 1))
		return -1;
	w->alias_names[BOUNDED(out + label, NAME_BYTES - 1)] = '.';
	w->aliases_len = out + label + 1;
	w->at = at + 1 + label;
	return 1;
}

/* All of them, as far as they fit; one that cannot be told ends it. */
INLINE void dns_read_aliases(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	struct dns_kept *kept = w->kept ? dns_kept.lookup(&ctx->key) : NULL;
	u32 i, done = 0, begun = 0;
	int more;

	if (w->kept && !kept)
		return;
	__builtin_memset(w->alias_names, 0, sizeof(w->alias_names));
	w->at = w->alias_at[0];
#pragma clang loop unroll(disable)
	for (i = 0; i < DNS_ALIAS_STEPS; i++) {
		asm volatile("" ::: "memory");
		more = dns_alias_step(skb, w, kept);
		if (more > 0)
			continue;
		if (more < 0)
			break;
		begun = w->aliases_len;
		done += 1;
		if (done >= w->aliases || done >= DNS_ALIASES)
			break;
		w->at = w->alias_at[BOUNDED(done, DNS_ALIASES - 1)];
	}
	w->aliases_len = begun;
}
