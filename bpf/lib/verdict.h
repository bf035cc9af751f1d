/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One endpoint's turn with a packet: conntrack, policy, counters, events. The same code for both directions; a
 * packet between two pods of the node passes it twice, first for the sender, then for the receiver. */
#pragma once
#include "config.h"
#include "conntrack.h"
#include "ct_room.h"
#include "deliver.h"
#include "endpoints.h"
#include "http_tables.h"
#include "l7.h"
#include "policy.h"
#include "refined.h"
#include "trace.h"

/* 1 in the one program that has asked the destination's names before (fqdn.c): they answer for policy. */
#ifndef NAMED_TURN
#define NAMED_TURN 0
#endif

/* What policy says of a packet in the original direction. */
struct decision {
	u32 rule_id;
	u32 l7_ruleset;
	u8 match_type;
	u8 drop_reason; /* 0: allowed */
	u8 audited;     /* instead of drop_reason, where the endpoint is only audited */
};

/* The destination's names had their say already (fqdn.h). */
INLINE struct decision decide_named(const struct pkt_ctx *ctx)
{
	struct decision d = {
		.rule_id = ctx->named.rule_id, .l7_ruleset = ctx->named.l7_ruleset, .match_type = ctx->named.match_type,
	};

	if (ctx->named.rank == RANK_NONE)
		d.drop_reason = DROP_POLICY_DENIED;
	else if (ctx->named.rank == RANK_DENY || ctx->named.rank == RANK_REFUSE)
		d.drop_reason = DROP_POLICY_DENY;
	else if (d.l7_ruleset && !l7_enforced(d.l7_ruleset, DIR_EGRESS, ctx->protocol))
		d.drop_reason = DROP_HTTP_NO_STATE;
	return d;
}

INLINE struct decision decide_strictly(const struct pkt_ctx *ctx, const struct endpoint_info *ep, u8 direction, u32 peer)
{
	struct decision d = {};
	struct policy_entry *entry;
	u16 port = ctx->dport;

	if (ctx->protocol == PROTO_ICMP || ctx->protocol == PROTO_ICMPV6) {
		/* "Fragmentation needed" is always allowed: without it paths of a smaller MTU swallow packets. */
		if (ctx->protocol == PROTO_ICMP && ctx->icmp_type == 3 && ctx->icmp_code == 4)
			return d;
		port = ctx->sport; /* the type */
	}
	if (NAMED_TURN)
		return decide_named(ctx);
	if (unlikely(ep->flags & (direction == DIR_INGRESS ? ENDPOINT_F_REFINE_INGRESS : ENDPOINT_F_REFINE_EGRESS)))
		peer = refine(peer, &ctx->key.remote);
	entry = policy_lookup(ep->policy_id, direction, peer, ctx->protocol, port, &d.match_type);
	if (!entry) {
		d.drop_reason = DROP_POLICY_DENIED;
		return d;
	}
	d.rule_id = entry->rule_id;
	d.l7_ruleset = entry->l7_ruleset;
	if (entry->flags & POLICY_F_DENY)
		/* Arithmetic, not a branch: each state that lives on multiplies what the verifier has to walk. */
		d.drop_reason = DROP_POLICY_DENY +
				((entry->flags & POLICY_F_FULL) / POLICY_F_FULL) * (DROP_POLICY_MAP_FULL - DROP_POLICY_DENY);
	else if (d.l7_ruleset && !l7_enforced(d.l7_ruleset, direction, ctx->protocol))
		d.drop_reason = DROP_HTTP_NO_STATE; /* L7 rules that nobody here could enforce: fail closed */
	return d;
}

/* Requests to some ports are told without any policy: of all pods that receive them, or of single pods. */
INLINE u32 http_visibility(const struct endpoint_info *ep, u8 direction, u16 port)
{
	struct datapath_config *cfg = datapath_config();
	struct http_visible_key own = { .endpoint = ep->id, .port = port, .direction = direction };
	u32 key = port;

	if (unlikely(ep->flags & ENDPOINT_F_VISIBLE) && http_visible_pods.lookup(&own))
		return HTTP_VISIBLE;
	return direction == DIR_INGRESS && cfg && (cfg->flags & CONFIG_F_HTTP_VISIBLE) && http_visible.lookup(&key) ?
		       HTTP_VISIBLE : 0;
}

/* The same, but an endpoint that is only audited is refused nothing. */
INLINE struct decision decide(const struct pkt_ctx *ctx, const struct endpoint_info *ep, u8 direction, u32 peer)
{
	struct decision d = decide_strictly(ctx, ep, direction, peer);

	if (ctx->protocol == PROTO_TCP && !d.drop_reason && !d.l7_ruleset)
		d.l7_ruleset = http_visibility(ep, direction, ctx->dport);
	if (unlikely(d.drop_reason && (ep->flags & ENDPOINT_F_AUDIT))) {
		d.audited = d.drop_reason;
		d.drop_reason = 0;
		d.l7_ruleset = 0;
	}
	return d;
}

INLINE void ct_fill(struct ct_entry *entry, struct pkt_ctx *ctx, const struct endpoint_info *ep, u8 direction,
		    u32 peer_identity, u32 peer_endpoint, const struct decision *d)
{
	u64 now = precise_now(ctx);
	bool tcp = ctx->protocol == PROTO_TCP;

	entry->created_ns = now;
	entry->last_event = coarse_time(now);
	entry->bytes[0] = ctx->ip_len;
	entry->bytes[1] = 0;
	entry->handshake_ns = (ctx->flags & CTX_F_SYN) && direction == DIR_EGRESS ? now : 0;
	entry->packets[0] = 1;
	entry->packets[1] = 0;
	entry->seq_end[0] = tcp ? ctx->tcp_seq + ctx->payload_len + (ctx->tcp_flags & TCP_SYN ? 1 : 0) : 0;
	entry->seq_end[1] = 0;
	entry->rule_id = d->rule_id;
	entry->l7_ruleset = d->l7_ruleset;
	entry->self_identity = ep->identity;
	entry->peer_identity = peer_identity;
	entry->policy_revision = ep->policy_revision;
	entry->service_id = ctx->service_id;
	entry->rtt_us = 0;
	entry->retransmits = 0;
	entry->endpoint_id = ep->id;
	entry->peer_endpoint = peer_endpoint;
	entry->flags = d->l7_ruleset ? CT_F_HTTP : d->audited ? CT_F_AUDITED : 0;
	if (unlikely(ctx->flags & CTX_F_NORTH_SOUTH) && direction == DIR_INGRESS)
		entry->flags |= CT_F_NORTH_SOUTH;
	if (tcp && (ctx->tcp_flags & TCP_FIN))
		entry->flags |= CT_F_FIN_ORIGINAL;
	if (tcp && (ctx->tcp_flags & TCP_RST))
		entry->flags |= CT_F_RST;
	entry->direction = direction;
	entry->tcp_flags = ctx->protocol == PROTO_ICMP || ctx->protocol == PROTO_ICMPV6 ? ctx->icmp_type :
											  ctx->tcp_flags;
	entry->match_type = d->match_type;
	entry->drop_reason = d->audited;
	if (ctx->service_id) {
		entry->nat_address = ctx->service_address;
		entry->nat_port = ctx->service_port;
	} else {
		entry->nat_address = (struct addr){};
		entry->nat_port = 0;
	}
	entry->nat_slot = 0;
	entry->expires_ns = now + ct_timeout(entry, ctx->protocol);
}

/* What a turn has to report at its end: one place, because each copy of the code that fills an event costs a compile. */
struct report {
	struct ct_entry *entry;
	u8 event; /* enum event_type; 0: nothing */
	u8 drop_reason; /* or audited */
};

INLINE int new_connection(struct pkt_ctx *ctx, const struct endpoint_info *ep, u8 direction, u32 peer_identity,
			  u32 peer_endpoint, struct report *report)
{
	struct decision d = decide(ctx, ep, direction, peer_identity);
	struct ct_entry *entry;
	u32 zero = 0;
	int reason;

	ctx->ct_state = CT_NEW;
	ctx->rule_id = d.rule_id;
	ctx->l7_ruleset = d.l7_ruleset;
	if (d.l7_ruleset)
		ctx->flags |= CTX_F_HTTP;
	ctx->match_type = d.match_type;
	if (d.drop_reason)
		return d.drop_reason;
	reason = ct_check_quota(ep->id);
	if (unlikely(reason))
		return reason;
	entry = ct_fresh.lookup(&zero);
	if (!entry)
		return DROP_CT_MAP_INSERTION_FAILED;
	ct_fill(entry, ctx, ep, direction, peer_identity, peer_endpoint, &d);
	reason = ct_insert(ctx, entry);
	if (unlikely(reason))
		return reason;
	report->entry = entry;
	report->event = EVENT_NEW;
	report->drop_reason = d.audited;
	return 0;
}

/* The policy or the peer's identity changed since this entry was decided. */
INLINE void decide_again(struct pkt_ctx *ctx, struct ct_entry *entry, const struct endpoint_info *ep, u8 direction,
			 u32 peer_identity, struct report *report)
{
	struct decision d = decide(ctx, ep, direction, peer_identity);
	u16 verdict = d.drop_reason ? CT_F_DENIED : d.audited ? CT_F_AUDITED : 0;

	if ((entry->flags & CT_F_REFUSED) != verdict || entry->l7_ruleset != d.l7_ruleset) {
		report->event = EVENT_VERDICT_CHANGE;
		report->drop_reason = d.drop_reason | d.audited;
	}
	entry->flags = (entry->flags & ~CT_F_REFUSED) | verdict;
	if (d.l7_ruleset)
		entry->flags |= CT_F_HTTP;
	entry->rule_id = d.rule_id;
	entry->l7_ruleset = d.l7_ruleset;
	entry->match_type = d.match_type;
	entry->drop_reason = d.drop_reason | d.audited;
	entry->policy_revision = ep->policy_revision;
	entry->peer_identity = peer_identity;
}

/* Counters, and the events that follow from them. A close that has to stand back for a change of verdict is left to
 * the next packet or to the collector. */
INLINE void follow_connection(struct pkt_ctx *ctx, struct ct_entry *entry, bool original, struct report *report)
{
	struct datapath_config *cfg = datapath_config();

	ct_account(ctx, entry, original);
	if (unlikely(report->event))
		return;
	if (unlikely((entry->flags & CT_F_RST) || ct_both_fins(entry))) {
		/* After the second FIN comes its ACK: the last packet belongs to the count. */
		if (!(entry->flags & CT_F_CLOSED) && !(ctx->tcp_flags & TCP_FIN)) {
			entry->flags |= CT_F_CLOSED;
			report->event = EVENT_CLOSE;
		}
		return;
	}
	if (cfg && cfg->update_interval_ns &&
	    ((s32)(coarse_time(ctx->now_ns) - entry->last_event) > (s32)coarse_time(cfg->update_interval_ns) ||
	     cfg->update_interval_ns == EVERY_PACKET_NS)) {
		entry->last_event = coarse_time(ctx->now_ns);
		report->event = EVENT_UPDATE;
	}
}

/* An ICMP error about a connection of this endpoint passes with it. */
INLINE bool is_related(struct pkt_ctx *ctx, bool sends)
{
	struct ct_entry *entry;

	/* It must go to whom it quotes: nobody's connection is a pass for a third party. */
	if (!addr_equal(&ctx->inner_saddr, &ctx->daddr))
		return false;
	ct_key_set_inner(ctx, sends);
	entry = ct.lookup(&ctx->key);
	if (!entry || ctx->now_ns > entry->expires_ns) {
		ct_key_set(ctx, sends);
		return false;
	}
	ctx->ct_state = CT_RELATED;
	ctx->rule_id = entry->rule_id;
	if (sends && (entry->flags & CT_F_NORTH_SOUTH))
		ctx->flags |= CTX_F_NORTH_SOUTH;
	if (!sends && entry->direction == DIR_EGRESS && entry->nat_port) {
		ctx->service_id = entry->service_id;
		ctx->service_address = entry->nat_address;
		ctx->service_port = entry->nat_port;
		ctx->flags |= CTX_F_REVNAT;
	}
	return true;
}

/* An entry that the packet may use, or NULL; one that is over is reported as closed and will be overwritten. */
INLINE struct ct_entry *ct_current(struct pkt_ctx *ctx, struct ct_entry *entry)
{
	if (!entry || likely(!ct_is_over(entry, ctx)))
		return entry;
	if (!(entry->flags & CT_F_CLOSED))
		emit_flow(ctx, entry, EVENT_CLOSE, 0);
	ct_unsettle(entry);
	return NULL;
}

INLINE int police_original(struct pkt_ctx *ctx, struct ct_entry *entry, const struct endpoint_info *ep, u8 direction,
			   u32 peer_identity, struct report *report)
{
	ctx->ct_state = CT_ESTABLISHED;
	if (unlikely(entry->policy_revision != ep->policy_revision || entry->peer_identity != peer_identity))
		decide_again(ctx, entry, ep, direction, peer_identity, report);
	ctx->rule_id = entry->rule_id;
	ctx->match_type = entry->match_type;
	ctx->l7_ruleset = entry->l7_ruleset;
	if (entry->flags & CT_F_HTTP)
		ctx->flags |= CTX_F_HTTP;
	if (unlikely((ctx->flags & CTX_F_NORTH_SOUTH) && direction == DIR_INGRESS))
		entry->flags |= CT_F_NORTH_SOUTH;
	if (unlikely(entry->flags & CT_F_DENIED))
		return entry->drop_reason;
	if (unlikely(ctx->service_id && !entry->nat_port)) {
		entry->service_id = ctx->service_id;
		entry->nat_address = ctx->service_address;
		entry->nat_port = ctx->service_port;
	}
	ctx->service_id = entry->service_id;
	follow_connection(ctx, entry, true, report);
	return 0;
}

/* Replies ask nobody. */
INLINE void police_reply(struct pkt_ctx *ctx, struct ct_entry *entry, u8 direction, struct report *report)
{
	ctx->ct_state = CT_REPLY;
	ctx->rule_id = entry->rule_id;
	ctx->l7_ruleset = entry->l7_ruleset;
	if (entry->flags & CT_F_HTTP)
		ctx->flags |= CTX_F_HTTP;
	ctx->service_id = entry->service_id;
	if (unlikely(entry->flags & CT_F_NORTH_SOUTH))
		ctx->flags |= CTX_F_NORTH_SOUTH;
	if (direction == DIR_INGRESS && entry->nat_port) {
		ctx->service_address = entry->nat_address;
		ctx->service_port = entry->nat_port;
		ctx->flags |= CTX_F_REVNAT;
	}
	follow_connection(ctx, entry, false, report);
}

/* The endpoint's verdict: 0 or a drop reason. `entry` is its conntrack entry for ctx->key or NULL. */
INLINE int police(struct pkt_ctx *ctx, struct ct_entry *entry, const struct endpoint_info *ep, u8 direction,
		  u32 peer_identity, u32 peer_endpoint)
{
	struct report report = {};
	int reason = 0;

	ctx->direction = direction;
	ctx->policy_revision = ep->policy_revision;
	if (unlikely(ctx->flags & CTX_F_ICMP_ERROR) && is_related(ctx, direction == DIR_EGRESS))
		return 0;
	entry = ct_current(ctx, entry);
	report.entry = entry;
	if (unlikely(!entry))
		reason = new_connection(ctx, ep, direction, peer_identity, peer_endpoint, &report);
	else if (entry->direction == direction)
		reason = police_original(ctx, entry, ep, direction, peer_identity, &report);
	else
		police_reply(ctx, entry, direction, &report);
	if (likely(entry && !reason))
		ct_follow_room(ctx, entry, entry->direction == direction);
	if (unlikely(report.event == EVENT_CLOSE && report.entry) && report.entry->peer_endpoint &&
	    ct_both_fins(report.entry))
		ct_retire(ctx, report.entry);
	if (unlikely(report.event && report.entry))
		emit_flow(ctx, report.entry, report.event, report.drop_reason);
	return reason;
}
