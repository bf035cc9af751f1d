/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connection tracking (services/agent/abi/conntrack.py): one entry per endpoint and connection. It remembers who
 * opened the connection, what policy said and at which revision, and counts both ways. */
#pragma once
#include "context.h"
#include "parse.h"

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
	CT_F_HTTP = 64,   /* was under an L7 rule set once: HTTP follows it, so that rules may come back */
	CT_F_AUDITED = 128, /* the current policy refuses it, but the endpoint is only audited */
	CT_F_UNREAD = 512, /* data came with the SYN that no HTTP program has read */
	CT_F_SETTLED = 256, /* has come to stay: see lib/ct_room.h */
	CT_F_NORTH_SOUTH = 1024, /* opened through a Service from outside: answers leave with its address */
	CT_F_CLOSING = CT_F_RST | CT_F_CLOSED,
	CT_F_REFUSED = CT_F_DENIED | CT_F_AUDITED,
};

/* 128 bytes: two cache lines, what every packet writes comes first. Index 0 of pairs: the original direction. Plain
 * additions, no atomics: one direction of one connection is on one CPU but for rare migrations. */
struct ct_entry {
	u64 created_ns;
	u64 expires_ns;
	u32 last_event;   /* coarse_time of the last NEW or UPDATE */
	u32 queue_number; /* its place in the queue of CPU queue_cpu: see lib/ct_room.h */
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
	u8 drop_reason; /* of CT_F_DENIED or CT_F_AUDITED */
	u16 nat_port;            /* 0: with nothing to translate, as when the socket was connected to a Service */
	struct addr nat_address; /* SERVICE: the backend. Others with a service_id: what the client addressed */
	u16 nat_slot;            /* SERVICE: the backend's slot when it was chosen */
	u16 queue_cpu;
};
_Static_assert(sizeof(struct ct_entry) == 128, "ct_entry");

/* The real size comes from the agent's configuration; the compiler's copy is thrown away. */
BPF_F_TABLE("hash", struct ct_key, struct ct_entry, ct, 1024, 0);

/* An untouched zero entry to start from: 128 bytes are too many for the stack of a program that holds more. */
PERCPU_MAP(ct_fresh, struct ct_entry, 1);

#define SECOND 1000000000ULL
#define CT_TIMEOUT_TCP (8000 * SECOND)
#define CT_TIMEOUT_SYN (60 * SECOND)
#define CT_TIMEOUT_CLOSE (10 * SECOND)
#define CT_TIMEOUT_OTHER (60 * SECOND)

/* Units of 2^20 ns (a millisecond or so) in 32 bits: what a difference of less than 25 days needs. */
INLINE u32 coarse_time(u64 ns)
{
	return ns >> 20;
}

INLINE bool ct_both_fins(const struct ct_entry *entry)
{
	return (entry->flags & (CT_F_FIN_ORIGINAL | CT_F_FIN_REPLY)) == (CT_F_FIN_ORIGINAL | CT_F_FIN_REPLY);
}

INLINE u64 ct_timeout(const struct ct_entry *entry, u8 protocol)
{
	if (protocol != PROTO_TCP)
		return CT_TIMEOUT_OTHER;
	if ((entry->flags & CT_F_CLOSING) || ct_both_fins(entry))
		return CT_TIMEOUT_CLOSE;
	return (entry->flags & CT_F_SEEN_REPLY) ? CT_TIMEOUT_TCP : CT_TIMEOUT_SYN;
}

/* The entry is history: its time is over and it waits to be collected, or it is closing and this packet opens a new
 * connection with the same ports. */
INLINE bool ct_is_over(const struct ct_entry *entry, const struct pkt_ctx *ctx)
{
	if (ctx->now_ns > entry->expires_ns)
		return true;
	return (ctx->flags & CTX_F_SYN) && ((entry->flags & CT_F_CLOSING) || ct_both_fins(entry));
}

/* Key of the endpoint that sends the packet (`sends`) or receives it. */
INLINE void ct_key_set(struct pkt_ctx *ctx, bool sends)
{
	struct ct_key *key = &ctx->key;

	key->local = sends ? ctx->saddr : ctx->daddr;
	key->remote = sends ? ctx->daddr : ctx->saddr;
	key->local_port = sends ? ctx->sport : ctx->dport;
	key->remote_port = sends ? ctx->dport : ctx->sport;
	key->protocol = ctx->protocol;
	key->scope = CT_SCOPE_CONNECTION;
	key->pad = 0;
	if (unlikely(ctx->protocol == PROTO_ICMP || ctx->protocol == PROTO_ICMPV6)) {
		if (is_icmp_echo(ctx->family, ctx->icmp_type)) {
			bool pings = is_icmp_request(ctx->family, ctx->icmp_type) == sends;

			key->local_port = pings ? ctx->icmp_id : 0;
			key->remote_port = pings ? 0 : ctx->icmp_id;
		} else {
			key->local_port = ctx->sport;
			key->remote_port = ctx->dport;
		}
	}
}

/* Key of the connection that an ICMP error is about: the packet inside went the other way. */
INLINE void ct_key_set_inner(struct pkt_ctx *ctx, bool sends)
{
	struct ct_key *key = &ctx->key;

	key->local = sends ? ctx->inner_daddr : ctx->inner_saddr;
	key->remote = sends ? ctx->inner_saddr : ctx->inner_daddr;
	key->local_port = sends ? ctx->inner_dport : ctx->inner_sport;
	key->remote_port = sends ? ctx->inner_sport : ctx->inner_dport;
	key->protocol = ctx->inner_protocol;
	key->scope = CT_SCOPE_CONNECTION;
	key->pad = 0;
}

/* TCP only: flags, handshake time, retransmissions. `way` 0 = original direction. */
INLINE void ct_account_tcp(struct pkt_ctx *ctx, struct ct_entry *entry, u32 way)
{
	u8 tcp = ctx->tcp_flags;
	u32 end = ctx->tcp_seq + ctx->payload_len + (tcp & TCP_SYN ? 1 : 0) + (tcp & TCP_FIN ? 1 : 0);

	entry->tcp_flags |= tcp;
	if (end != ctx->tcp_seq) {
		if ((s32)(end - entry->seq_end[way & 1]) > 0 || !entry->seq_end[way & 1])
			entry->seq_end[way & 1] = end;
		else
			entry->retransmits += 1;
	}
	if (unlikely(entry->handshake_ns && way == (entry->direction == DIR_EGRESS))) {
		entry->rtt_us = (precise_now(ctx) - entry->handshake_ns) / 1000;
		entry->handshake_ns = 0;
	}
	if (unlikely(tcp & (TCP_SYN | TCP_FIN | TCP_RST))) {
		if ((tcp & TCP_SYN) && way == (entry->direction == DIR_INGRESS))
			entry->handshake_ns = precise_now(ctx);
		if (tcp & TCP_FIN)
			entry->flags |= way ? CT_F_FIN_REPLY : CT_F_FIN_ORIGINAL;
		if (tcp & TCP_RST)
			entry->flags |= CT_F_RST;
	}
}

INLINE void ct_account(struct pkt_ctx *ctx, struct ct_entry *entry, bool original)
{
	u32 way = original ? 0 : 1;

	if (original) {
		entry->packets[0] += 1;
		entry->bytes[0] += ctx->ip_len;
	} else {
		entry->packets[1] += 1;
		entry->bytes[1] += ctx->ip_len;
		entry->flags |= CT_F_SEEN_REPLY;
	}
	if (ctx->protocol == PROTO_TCP && !(ctx->flags & CTX_F_NO_L4))
		ct_account_tcp(ctx, entry, way);
	entry->expires_ns = ctx->now_ns + ct_timeout(entry, ctx->protocol);
}
