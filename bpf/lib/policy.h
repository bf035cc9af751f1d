/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Policy map (services/agent/abi/policy.py): a longest-prefix trie for all endpoints of the node.
 *
 * The fixed part of the key comes first and is always significant (72 bits: policy id, peer identity, direction), so
 * that what follows can be cut short: 72 = L3 only, 80 = every port of a protocol, 81..96 = a port or an aligned
 * range. For ICMP the port is the type. */
#pragma once
#include "types.h"

struct policy_key {
	u32 prefixlen;
	u32 policy_id;
	u32 identity;
	u8 direction;
	u8 protocol;
	u16 port; /* network order */
};
_Static_assert(sizeof(struct policy_key) == 16, "policy_key");

enum policy_flags {
	POLICY_F_DENY = 1,
	POLICY_F_FULL = 2, /* with DENY: stands for a whole policy that the map has no room for */
};

/* A deny of this precedence cannot be beaten: the second look-up is spared. */
#define PRECEDENCE_MAX 255

struct policy_entry {
	u32 precedence;
	u32 rule_id;
	u32 l7_ruleset;
	u8 flags;
	u8 prefix_bits; /* of (protocol, port): 0, 8, 9..24 */
	u16 pad;
};
_Static_assert(sizeof(struct policy_entry) == 16, "policy_entry");

LPM_MAP(policy, struct policy_key, struct policy_entry, 262144);

/* What matched, in the flow API's numbers. */
enum match_type {
	MATCH_NONE = 0,
	MATCH_L3 = 1,
	MATCH_L3_L4 = 2,
	MATCH_L4 = 3,
	MATCH_ALL = 4,
	MATCH_L3_PROTO = 5,
	MATCH_PROTO = 6,
};

INLINE u8 match_type_of(const struct policy_entry *entry, bool names_peer)
{
	if (entry->prefix_bits > 8)
		return names_peer ? MATCH_L3_L4 : MATCH_L4;
	if (entry->prefix_bits == 8)
		return names_peer ? MATCH_L3_PROTO : MATCH_PROTO;
	return names_peer ? MATCH_L3 : MATCH_ALL;
}

/* The entry that decides, or NULL (default deny): higher precedence, then longer prefix, then the one that names the
 * peer. */
INLINE struct policy_entry *policy_lookup(u32 policy_id, u8 direction, u32 identity, u8 protocol, u16 port,
					  u8 *match_type)
{
	struct policy_key key = {
		.prefixlen = 96,
		.policy_id = policy_id,
		.identity = identity,
		.direction = direction,
		.protocol = protocol,
		.port = port,
	};
	struct policy_entry *named = NULL, *any;

	if (identity != IDENTITY_ANY) {
		named = policy.lookup(&key);
		if (named && named->precedence >= PRECEDENCE_MAX) {
			*match_type = match_type_of(named, true);
			return named;
		}
		key.identity = IDENTITY_ANY;
	}
	any = policy.lookup(&key);
	if (named && (!any || named->precedence > any->precedence ||
		      (named->precedence == any->precedence && named->prefix_bits >= any->prefix_bits))) {
		*match_type = match_type_of(named, true);
		return named;
	}
	*match_type = any ? match_type_of(any, false) : MATCH_NONE;
	return any;
}

/* What an entry comes to, where several may decide: the highest does. */
enum policy_rank {
	RANK_NONE = 0,   /* no entry: default deny */
	RANK_REFUSE = 1, /* allowed on a condition that nobody can enforce */
	RANK_L7 = 2,     /* allowed as far as L7 rules do */
	RANK_ALLOW = 3,
	RANK_DENY = 4,
};

INLINE u32 policy_rank(const struct policy_entry *entry)
{
	if (entry->flags & POLICY_F_DENY)
		return entry->precedence >= PRECEDENCE_MAX ? RANK_DENY : RANK_REFUSE;
	return entry->l7_ruleset ? RANK_L7 : RANK_ALLOW;
}
