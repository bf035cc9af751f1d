/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pods that share an identity and that some rule tells apart (services/agent/calc/refined.py): a block of addresses that
 * has some of them, a port name that means another number. Policy knows such addresses by numbers of their own, which
 * only policy look-ups of endpoints with such rules ever see: connections, events and the overlay have the identity. */
#pragma once
#include "types.h"

struct refined_key {
	struct addr address;
	u32 identity; /* that the address has: while it changes hands it may be here twice */
};
_Static_assert(sizeof(struct refined_key) == 20, "refined_key");

HASH_MAP(refined, struct refined_key, u32, 262144);

INLINE u32 refine(u32 identity, const struct addr *address)
{
	struct refined_key key = { .address = *address, .identity = identity };
	u32 *part = refined.lookup(&key);

	return part ? *part : identity;
}
