/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connection events: what happened to the conntrack entry behind ctx->key. */
#pragma once
#include "conntrack.h"
#include "events.h"

INLINE void fill_connection(struct event_connection *c, const struct pkt_ctx *ctx, const struct ct_entry *entry)
{
	const struct ct_key *key = &ctx->key;
	bool opened = entry->direction == DIR_EGRESS;

	c->saddr = opened ? key->local : key->remote;
	c->daddr = opened ? key->remote : key->local;
	c->protocol = key->protocol;
	if (key->protocol == PROTO_ICMP || key->protocol == PROTO_ICMPV6) {
		c->sport = bpf_htons(entry->tcp_flags);
		c->dport = 0;
		c->tcp_flags = 0;
	} else {
		c->sport = opened ? key->local_port : key->remote_port;
		c->dport = opened ? key->remote_port : key->local_port;
		c->tcp_flags = entry->tcp_flags;
	}
	c->direction = entry->direction;
	c->ct_state = ctx->ct_state;
	c->src_identity = opened ? entry->self_identity : entry->peer_identity;
	c->dst_identity = opened ? entry->peer_identity : entry->self_identity;
	c->rule_id = entry->rule_id;
	c->policy_revision = entry->policy_revision;
	c->match_type = entry->match_type;
	c->pad0 = 0;
	c->service_id = entry->service_id;
}

INLINE void emit_flow(struct pkt_ctx *ctx, struct ct_entry *entry, u8 type, u8 drop_reason)
{
	struct flow_event *e = flow_event_reserve();

	if (!e) {
		count_lost(type);
		return;
	}
	event_header_at(&e->header, type, entry->endpoint_id, precise_now(ctx));
	fill_connection(&e->connection, ctx, entry);
	e->connection.drop_reason = drop_reason;
	if (drop_reason && (entry->flags & CT_F_AUDITED))
		e->header.flags = EVENT_F_AUDIT;
	e->packets[0] = entry->packets[0];
	e->packets[1] = entry->packets[1];
	e->bytes[0] = entry->bytes[0];
	e->bytes[1] = entry->bytes[1];
	e->rtt_us = entry->rtt_us;
	e->retransmits = entry->retransmits;
	e->duration_us = (e->header.time_ns - entry->created_ns) / 1000;
	e->l7_ruleset = entry->l7_ruleset;
	flow_event_submit();
}
