/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Local endpoints (services/agent/abi/endpoints.py): what differs between them is here, never in code. */
#pragma once
#include "types.h"

enum endpoint_flags {
	ENDPOINT_F_AUDIT = 1,          /* policy is asked and told, but nothing is refused */
	ENDPOINT_F_REFINE_INGRESS = 2, /* rules tell pods of one identity apart: see lib/refined.h */
	ENDPOINT_F_REFINE_EGRESS = 4,
	ENDPOINT_F_INGRESS_RATE = 32, /* packets for it queue on the node's side of its interface */
	ENDPOINT_F_VISIBLE = 64, /* requests on some of its ports are told: see http_visibility */
	ENDPOINT_F_FQDN = 8, /* has toFQDNs rules: see lib/fqdn.h */
};

struct endpoint_info {
	u32 ifindex; /* host side of the veth */
	u32 identity;
	u32 policy_id;       /* whose entries of the policy map apply; endpoints with equal labels share one */
	u32 policy_revision; /* bumped with every change of those entries */
	u16 id;              /* 0: no such endpoint */
	u16 flags;           /* ENDPOINT_F_* */
	u8 mac[6];      /* the pod's */
	u8 node_mac[6]; /* the host side's, the pod's gateway */
	struct addr ipv4;
	struct addr ipv6;
};
_Static_assert(sizeof(struct endpoint_info) == 64, "endpoint_info");

#define MAX_ENDPOINTS 4096

ARRAY_MAP(endpoints, struct endpoint_info, MAX_ENDPOINTS);
HASH_MAP(endpoint_addrs, struct addr, u32, 2 * MAX_ENDPOINTS);
HASH_MAP(endpoint_ifs, u32, u32, MAX_ENDPOINTS);
/* By interface, modulo its size: which endpoint was found there last. Programs write it and check what it says. */
ARRAY_MAP(endpoint_guess, u32, MAX_ENDPOINTS);

/* NULL unless `id` is an endpoint. */
INLINE struct endpoint_info *endpoint_by_id(u32 id)
{
	struct endpoint_info *ep = endpoints.lookup(&id);

	return ep && ep->id ? ep : NULL;
}

INLINE struct endpoint_info *endpoint_by_ifindex(u32 ifindex)
{
	u32 slot = ifindex % MAX_ENDPOINTS, *guess = endpoint_guess.lookup(&slot), *id;
	struct endpoint_info *ep;

	if (!guess)
		return NULL;
	ep = endpoints.lookup(guess);
	if (likely(ep && ep->ifindex == ifindex))
		return ep->id ? ep : NULL;
	id = endpoint_ifs.lookup(&ifindex);
	if (!id)
		return NULL;
	*guess = *id;
	return endpoint_by_id(*id);
}

INLINE struct endpoint_info *endpoint_by_addr(struct addr *address)
{
	u32 *id = endpoint_addrs.lookup(address);

	return id ? endpoint_by_id(*id) : NULL;
}

INLINE bool endpoint_owns(const struct endpoint_info *ep, const struct addr *address)
{
	return addr_equal(address, &ep->ipv4) || addr_equal(address, &ep->ipv6);
}
