/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Numbers of L7 rule sets, as policy entries and conntrack carry them: what kind, and which (services/agent/abi/names.py).
 * Who enforces which kind where: anything else is refused, because a rule that nobody enforces allows nothing. */
#pragma once
#include "types.h"

#define L7_KIND_SHIFT 16
#define L7_NUMBER_MASK 0xffff

enum l7_kind {
	L7_KIND_HTTP = 0,
	L7_KIND_DNS = 1,
	L7_KIND_TLS = 2,
};

INLINE u32 l7_kind(u32 ruleset)
{
	return ruleset >> L7_KIND_SHIFT;
}

INLINE bool l7_enforced(u32 ruleset, u8 direction, u8 protocol)
{
	switch (l7_kind(ruleset)) {
	case L7_KIND_HTTP:
		return protocol == PROTO_TCP;
	case L7_KIND_DNS:
		return direction == DIR_EGRESS && (protocol == PROTO_UDP || protocol == PROTO_TCP);
	case L7_KIND_TLS:
		return protocol == PROTO_TCP;
	}
	return false;
}
