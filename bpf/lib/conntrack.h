/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connection tracking (services/agent/abi/conntrack.py): one entry per endpoint and connection. It remembers who
 * opened the connection, what policy said and at which revision, and counts both ways. */
#pragma once
#include "context.h"

enum ct_status {
	CT_NEW = 0,
	CT_ESTABLISHED = 1,
	CT_REPLY = 2,
	CT_RELATED = 3,
};

enum ct_scope {
	CT_SCOPE_CONNECTION = 0,
	CT_SCOPE_SERVICE = 1, /* the tuple that the client addressed -> the backend that was chosen */
	CT_SCOPE_HAIRPIN = 2, /* replies of a pod to itself, towards the hairpin address */
};

enum ct_flags {
	CT_F_SEEN_REPLY = 1,
	CT_F_FIN_ORIGINAL = 2,
	CT_F_FIN_REPLY = 4,
	CT_F_RST = 8,
	CT_F_DENIED = 16, /* the current policy refuses it; replies still pass */
	CT_F_CLOSED = 32, /* CLOSE was emitted */
	CT_F_CLOSING = CT_F_RST | CT_F_CLOSED,
};

/* 128 bytes: two cache lines, what every packet writes comes first. Index 0 of pairs: the original direction. Plain
 * additions, no atomics: one direction of one connection is on one CPU but for rare migrations. */
struct ct_entry {
	u64 created_ns;
	u64 expires_ns;
	u64 last_event_ns;
	u64 bytes[2];
	u64 handshake_ns; /* when the SYN (or SYN-ACK) left that we wait an answer for; 0: none */
	u32 packets[2];
	u32 seq_end[2]; /* highest TCP sequence number seen + 1 */

	u32 rule_id;
	u32 l7_ruleset;
	u32 self_identity;
	u32 peer_identity;
	u32 policy_revision;
	u32 service_id;
	u32 rtt_us;
	u32 retransmits;
	u16 endpoint_id;
	u16 peer_endpoint; /* the peer's id when it is a pod of this node: a hint, checked by address */
	u16 flags;         /* CT_F_* */
	u8 direction;      /* who opened it: DIR_EGRESS = the endpoint */
	u8 tcp_flags;      /* all that were seen; ICMP: the type that opened it */
	u8 match_type;
	u8 drop_reason; /* of CT_F_DENIED */
	u16 nat_port;
	struct addr nat_address; /* SERVICE: the backend. Others with a service_id: what the client addressed */
	u16 nat_slot;            /* SERVICE: the backend's slot when it was chosen */
	u16 pad;
};
_Static_assert(sizeof(struct ct_entry) == 128, "ct_entry");

/* The real size comes from the agent's configuration; the compiler's copy is thrown away. */
BPF_F_TABLE("lru_hash", struct ct_key, struct ct_entry, ct, 1024, CT_MAP_FLAGS);

/* An untouched zero entry to start from: 128 bytes are too many for the stack of a program that holds more. */
PERCPU_MAP(ct_fresh, struct ct_entry, 1);
