/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Addresses that answers to pods' questions gave for names (services/agent/abi/names.py), and policy for them.
 *
 * An address has up to eight names with an expiry each, a name has the identity that stands for the toFQDNs selectors
 * that match it. `lib/dns.h` writes both before the pod sees the answer. When selectors change the agent gives names
 * other identities; addresses stay as they are. Nobody removes anything: what is over says so itself, and the least
 * recently used is overwritten. So there is no race between a collector and an answer.
 *
 * Only policy of endpoints with toFQDNs rules looks here, and only for destinations in the outside world. */
#pragma once
#include "conntrack.h"
#include "context.h"
#include "endpoints.h"
#include "names.h"
#include "policy.h"

#define FQDN_SLOTS 8
#define FQDN_CONCERNS (1ULL << 63) /* in an expiry: a selector matched, so that the slot is worth keeping */

struct fqdn_slot {
	u64 name;       /* hash; 0: free */
	u64 expires_ns; /* monotonic, grace included; FQDN_CONCERNS */
};

struct fqdn_ip {
	struct fqdn_slot slots[FQDN_SLOTS];
};
_Static_assert(sizeof(struct fqdn_ip) == 128, "fqdn_ip");

struct fqdn_name {
	u64 learned_ns; /* when an answer last gave an address */
	u64 expires_ns; /* of the latest answer, grace included */
	u32 identity;   /* of the selectors that match; 0: none */
	u32 ttl;      /* of the latest answer, seconds */
	u32 length;
	u32 pad;
	u8 name[NAME_BYTES];
};
_Static_assert(sizeof(struct fqdn_name) == 288, "fqdn_name");

BPF_F_TABLE("lru_hash", struct addr, struct fqdn_ip, fqdn_ips, 32768, 0);
BPF_F_TABLE("lru_hash", u64, struct fqdn_name, fqdn_names, 16384, 0);

/* toFQDNs are about the outside world: never about pods and nodes, even if DNS names them. */
INLINE bool fqdn_concerns(u32 identity)
{
	return identity == IDENTITY_WORLD || identity == IDENTITY_WORLD_IPV4 || identity == IDENTITY_WORLD_IPV6 ||
	       identity > IDENTITY_CLUSTER_MAX;
}

/* Must policy be asked about this packet of an endpoint with toFQDNs rules, and may names answer? */
INLINE bool fqdn_decides(const struct pkt_ctx *ctx, const struct ct_entry *entry, const struct endpoint_info *ep)
{
	if (!fqdn_concerns(ctx->dst_identity))
		return false;
	if (!entry || ct_is_over(entry, ctx))
		return true;
	return entry->direction == DIR_EGRESS &&
	       (entry->policy_revision != ep->policy_revision || entry->peer_identity != ctx->dst_identity);
}

/* Let the names of the address that ctx->key is about have their say: ctx->named holds what its identity alone would
 * get, and what decides afterwards. Of entries of equal right a deny beats all, then an allow without conditions, then one
 * with L7 rules, then one whose conditions nobody can enforce (enum policy_rank). Everything goes through memory: the
 * verifier then looks at one iteration, and once at what follows. */
INLINE void fqdn_policy(struct pkt_ctx *ctx, u32 policy_id, u16 port)
{
	struct policy_key key = {
		.prefixlen = 96, .policy_id = policy_id, .direction = DIR_EGRESS, .protocol = ctx->protocol, .port = port,
	};
	struct fqdn_ip *ip = fqdn_ips.lookup(&ctx->key.remote);
	u32 i;

	if (!ip)
		return;
#pragma clang loop unroll(disable)
	for (i = 0; i < FQDN_SLOTS; i++) {
		struct fqdn_slot *slot = &ip->slots[BOUNDED(i, FQDN_SLOTS - 1)];
		struct policy_entry *entry;
		struct fqdn_name *name;
		u64 hash;

		asm volatile("" ::: "memory");
		hash = slot->name;
		/* An open connection may outlive its names. */
		if (!hash || (!(ctx->flags & CTX_F_OPEN) && ctx->now_ns > (slot->expires_ns & ~FQDN_CONCERNS)))
			continue;
		name = fqdn_names.lookup(&hash);
		if (!name || !name->identity)
			continue;
		key.identity = name->identity;
		entry = policy.lookup(&key);
		if (entry && policy_rank(entry) >= ctx->named.rank) {
			ctx->named.rank = policy_rank(entry);
			ctx->named.rule_id = entry->rule_id;
			ctx->named.l7_ruleset = entry->l7_ruleset;
			ctx->named.match_type = match_type_of(entry, true);
		}
	}
	asm volatile("" ::: "memory");
}
