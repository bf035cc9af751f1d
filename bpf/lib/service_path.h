/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services packet by packet, for pods: what a connection was sent to is remembered in conntrack.
 *
 * A connection's entry remembers what the client addressed, so replies find their way back also when the Service
 * has gone meanwhile. */
#pragma once
#include "conntrack.h"
#include "ct_room.h"
#include "drop_reasons.h"
#include "lb.h"
#include "nat.h"
#include "trace.h"

INLINE u64 service_timeout(const struct pkt_ctx *ctx, const struct ct_entry *chosen)
{
	if (ctx->protocol != PROTO_TCP)
		return CT_TIMEOUT_OTHER;
	if (chosen->flags & CT_F_RST)
		return CT_TIMEOUT_CLOSE;
	return chosen->flags & CT_F_SETTLED ? CT_TIMEOUT_TCP : CT_TIMEOUT_SYN;
}

/* Protocols that Services have. */
INLINE bool has_services(u8 protocol)
{
	return protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP;
}

/* A packet that cannot open a connection. */
INLINE bool cannot_open(const struct pkt_ctx *ctx)
{
	return (ctx->protocol == PROTO_TCP || ctx->protocol == PROTO_SCTP) && !(ctx->flags & CTX_F_SYN);
}

INLINE bool backend_is(const struct backend *b, const struct ct_entry *entry)
{
	return b && b->port == entry->nat_port && addr_equal(&b->address, &entry->nat_address);
}

/* Has another connection the tuple that this one would get: the pod's own to that backend, or by another Service? To
 * go on would break it, for TCP would take the packet for its own. */
INLINE bool is_elses(const struct pkt_ctx *ctx, const struct ct_entry *connection)
{
	return ctx->protocol == PROTO_TCP &&
	       (connection->nat_port != ctx->dport || !addr_equal(&connection->nat_address, &ctx->daddr));
}

/* The connection to `address` and `port` that this packet's would be, if there is one. ctx->key is the service's, and
 * again afterwards. */
INLINE struct ct_entry *connection_to(struct pkt_ctx *ctx, const struct addr *address, u16 port)
{
	struct ct_entry *connection;
	struct addr wanted = ctx->key.remote;
	u16 wanted_port = ctx->key.remote_port;

	ctx->key.remote = *address;
	ctx->key.remote_port = port;
	ctx->key.scope = CT_SCOPE_CONNECTION;
	connection = ct.lookup(&ctx->key);
	ctx->key.remote = wanted;
	ctx->key.remote_port = wanted_port;
	ctx->key.scope = CT_SCOPE_SERVICE;
	return connection && !ct_is_over(connection, ctx) ? connection : NULL;
}

/* May this packet keep the backend that was chosen for its tuple? ctx->key is the service's, and again afterwards.
 * A packet inside a connection keeps it; one that may start a connection keeps it while the backend is still there
 * and nothing was answered (a retransmitted SYN), or while the peer answers (UDP). */
INLINE bool keeps_backend(struct pkt_ctx *ctx, const struct ct_entry *chosen)
{
	struct ct_entry *connection;
	bool answered;

	if (ctx->now_ns > chosen->expires_ns)
		return false;
	if (cannot_open(ctx))
		return true;
	connection = connection_to(ctx, &chosen->nat_address, chosen->nat_port);
	if (!connection || is_elses(ctx, connection))
		return false;
	answered = connection->flags & CT_F_SEEN_REPLY;
	if (ctx->protocol == PROTO_UDP && answered)
		return true;
	return !answered && backend_is(backend_at(chosen->service_id, chosen->nat_slot), chosen);
}

/* Choose a backend and remember it under ctx->key. NULL and *reason when there is none. */
INLINE struct ct_entry *choose_backend(struct pkt_ctx *ctx, const struct service_key *frontend,
				       const struct service_info *service, int *reason)
{
	struct lb_client client = { .address = ctx->saddr, .port = ctx->sport, .now_ns = ctx->now_ns };
	struct ct_entry *entry;
	struct backend *b;
	u32 slot = 0, zero = 0;

	*reason = DROP_SERVICE_BACKEND_NOT_FOUND;
	ctx->service_id = service->service_id;
	b = lb_select(frontend, service, &client, &slot);
	if (!b) {
		if (service->flags & SERVICE_F_REFUSE)
			ctx->flags |= CTX_F_REFUSE;
		return NULL;
	}
	entry = ctx->protocol == PROTO_TCP ? connection_to(ctx, &b->address, b->port) : NULL;
	if (unlikely(entry && is_elses(ctx, entry))) {
		/* Its client asks again in a second, and may get another backend. */
		*reason = DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
		return NULL;
	}
	entry = ct_fresh.lookup(&zero);
	if (!entry)
		return NULL;
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->created_ns = ctx->now_ns;
	entry->expires_ns = ctx->now_ns + service_timeout(ctx, entry);
	entry->service_id = service->service_id;
	entry->endpoint_id = ctx->src_endpoint;
	entry->direction = DIR_EGRESS;
	entry->nat_address = b->address;
	entry->nat_port = b->port;
	entry->nat_slot = slot;
	*reason = ct_insert(ctx, entry);
	return *reason ? NULL : entry;
}

/* A packet uses the choice `chosen`. It has settled once a connection goes on behind it, and stays until its client
 * has said that it is done; what is left of the connection then keeps it alive for a while. */
INLINE void follow_choice(struct pkt_ctx *ctx, struct ct_entry *chosen)
{
	bool tcp = ctx->protocol == PROTO_TCP;

	if (unlikely(tcp && (ctx->tcp_flags & (TCP_FIN | TCP_RST)))) {
		if (chosen->flags & CT_F_SETTLED)
			ct_leave(ctx, chosen);
		chosen->flags |= ctx->tcp_flags & TCP_RST ? CT_F_RST : CT_F_FIN_ORIGINAL;
	} else if (unlikely(!(chosen->flags & (CT_F_SETTLED | CT_F_RST | CT_F_FIN_ORIGINAL)))) {
		if (tcp ? !(ctx->flags & CTX_F_SYN) : ctx->now_ns - chosen->created_ns > CT_SETTLE_OTHER)
			ct_settle(chosen);
	}
	chosen->expires_ns = ctx->now_ns + service_timeout(ctx, chosen);
}

/* If the packet goes to a Service: ctx->service_* say to which, `*to` and `*port` to which backend instead. Returns 1
 * for a Service, 0 for none, or a negative drop reason. ctx->key is spoilt.
 *
 * Packets that may open something ask the Services first, which is all that a connection to elsewhere pays; packets
 * inside a TCP connection ask conntrack alone, so that they outlive their Service. */
INLINE int service_backend(struct pkt_ctx *ctx, struct addr *to, u16 *port)
{
	struct service_key frontend = {
		.address = ctx->daddr, .port = ctx->dport, .protocol = ctx->protocol, .scope = SCOPE_INTERNAL
	};
	bool inside = cannot_open(ctx);
	struct service_info *service = NULL;
	struct ct_entry *chosen;
	int reason;

	if (!inside) {
		service = services.lookup(&frontend);
		if (!service)
			return 0;
	}
	ctx->key.scope = CT_SCOPE_SERVICE;
	chosen = ct.lookup(&ctx->key);
	if (chosen && keeps_backend(ctx, chosen)) {
		ctx->service_id = chosen->service_id;
		follow_choice(ctx, chosen);
	} else if (service) {
		if (chosen)
			ct_unsettle(chosen);
		chosen = choose_backend(ctx, &frontend, service, &reason);
		if (!chosen)
			return -reason;
	} else {
		return 0;
	}
	ctx->flags |= CTX_F_TO_SERVICE;
	ctx->service_address = ctx->daddr;
	ctx->service_port = ctx->dport;
	*to = chosen->nat_address;
	*port = chosen->nat_port;
	return 1;
}

/* A Service's address that was not translated: another port of it, or a packet inside a connection that nobody
 * remembers. */
INLINE bool is_service_address(const struct pkt_ctx *ctx)
{
	return service_has_address(&ctx->daddr, ctx->dport, ctx->protocol, SCOPE_INTERNAL);
}
