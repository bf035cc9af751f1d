/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Events of questions, answers and TLS clients' first messages: one ring of fixed-size records. */
#pragma once
#include "conntrack.h"
#include "events.h"

/* The connection is told in its original direction, whoever speaks. */
INLINE void name_event_connection(struct event_connection *c, const struct pkt_ctx *ctx)
{
	bool reply = ctx->ct_state == CT_REPLY; /* then the pod is the receiver */

	c->saddr = reply ? ctx->key.local : ctx->saddr;
	c->daddr = reply ? ctx->key.remote : ctx->daddr;
	c->sport = reply ? ctx->key.local_port : ctx->sport;
	c->dport = reply ? ctx->key.remote_port : ctx->dport;
	c->protocol = ctx->protocol;
	c->tcp_flags = ctx->tcp_flags;
	c->direction = reply ? DIR_EGRESS : ctx->direction;
	c->ct_state = ctx->ct_state;
	c->src_identity = reply ? ctx->dst_identity : ctx->src_identity;
	c->dst_identity = reply ? ctx->src_identity : ctx->dst_identity;
	c->rule_id = ctx->rule_id;
	c->policy_revision = ctx->policy_revision;
	c->match_type = ctx->match_type;
	c->pad0 = 0;
	c->service_id = ctx->service_id;
}

/* A record with its header and connection filled, the rest zero; NULL: the ring is full, and that was counted. */
INLINE struct name_event *name_event_begin(struct pkt_ctx *ctx, u8 type, u8 reason, bool audited)
{
	struct name_event *e = name_events.ringbuf_reserve(sizeof(*e));
	u32 endpoint = ctx->ct_state == CT_REPLY || ctx->direction == DIR_INGRESS ? ctx->dst_endpoint : ctx->src_endpoint;

	if (!e) {
		count_lost(type);
		return NULL;
	}
	__builtin_memset((void *)e, 0, __builtin_offsetof(struct name_event, name));
	event_header_at(&e->header, type, endpoint, precise_now(ctx));
	e->header.flags = audited ? EVENT_F_AUDIT : 0;
	name_event_connection(&e->connection, ctx);
	e->connection.drop_reason = reason;
	e->l7_ruleset = ctx->l7_ruleset;
	return e;
}
