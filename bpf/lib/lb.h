/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services (services/agent/abi/lb.py): a random backend for each new connection, remembered in conntrack.
 *
 * A connection's entry remembers what the client addressed, so replies find their way back also when the Service
 * has gone meanwhile. */
#pragma once
#include "config.h"
#include "conntrack.h"
#include "nat.h"
#include "trace.h"

struct service_key {
	struct addr address;
	u16 port; /* network order; 0 with protocol 0: any other port of the address */
	u8 protocol;
	u8 scope;
};
_Static_assert(sizeof(struct service_key) == 20, "service_key");

struct service_info {
	u32 service_id;
	u32 backend_count;
	u32 flags;
	u32 affinity_timeout;
};
_Static_assert(sizeof(struct service_info) == 16, "service_info");

struct backend_key {
	u32 service_id;
	u32 slot;
};
_Static_assert(sizeof(struct backend_key) == 8, "backend_key");

struct backend {
	struct addr address;
	u16 port;
	u8 protocol;
	u8 flags;
};
_Static_assert(sizeof(struct backend) == 20, "backend");

struct revnat {
	struct addr address;
	u16 port;
	u16 pad;
};
_Static_assert(sizeof(struct revnat) == 20, "revnat");

HASH_MAP(services, struct service_key, struct service_info, 65536);
HASH_MAP(backends, struct backend_key, struct backend, 262144);
/* For people and tools: which address a service id stands for. Packets take it from conntrack. */
HASH_MAP(revnat, u32, struct revnat, 65536);

INLINE u64 service_timeout(const struct pkt_ctx *ctx)
{
	return ctx->protocol == PROTO_TCP ? CT_TIMEOUT_TCP : CT_TIMEOUT_OTHER;
}

INLINE struct backend *backend_at(u32 service_id, u32 slot)
{
	struct backend_key key = { .service_id = service_id, .slot = slot };

	return backends.lookup(&key);
}

INLINE bool backend_is(const struct backend *b, const struct ct_entry *entry)
{
	return b && b->port == entry->nat_port && addr_equal(&b->address, &entry->nat_address);
}

/* May this packet keep the backend that was chosen for its tuple? ctx->key is the service's, and again afterwards.
 * A packet inside a connection keeps it; one that may start a connection keeps it while the backend is still there
 * and nothing was answered (a retransmitted SYN), or while the peer answers (UDP). */
INLINE bool keeps_backend(struct pkt_ctx *ctx, const struct ct_entry *chosen)
{
	struct ct_entry *connection;
	struct addr address = ctx->key.remote;
	u16 port = ctx->key.remote_port;
	bool answered = false, live = false;

	if (ctx->now_ns > chosen->expires_ns)
		return false;
	if (ctx->protocol == PROTO_TCP && !(ctx->flags & CTX_F_SYN))
		return true;
	ctx->key.remote = chosen->nat_address;
	ctx->key.remote_port = chosen->nat_port;
	ctx->key.scope = CT_SCOPE_CONNECTION;
	connection = ct.lookup(&ctx->key);
	if (connection && !ct_is_over(connection, ctx)) {
		live = true;
		answered = connection->flags & CT_F_SEEN_REPLY;
	}
	ctx->key.remote = address;
	ctx->key.remote_port = port;
	ctx->key.scope = CT_SCOPE_SERVICE;
	if (ctx->protocol != PROTO_TCP && answered)
		return true;
	return live && !answered && backend_is(backend_at(chosen->service_id, chosen->nat_slot), chosen);
}

/* Choose a backend and remember it under ctx->key. NULL and *reason when there is none. */
INLINE struct ct_entry *choose_backend(struct pkt_ctx *ctx, const struct service_info *service, int *reason)
{
	struct ct_entry *entry;
	struct backend *b;
	u32 slot, zero = 0;

	*reason = DROP_SERVICE_BACKEND_NOT_FOUND;
	ctx->service_id = service->service_id;
	if (!service->backend_count)
		return NULL;
	slot = bpf_get_prandom_u32() % service->backend_count;
	b = backend_at(service->service_id, slot);
	entry = ct_fresh.lookup(&zero);
	if (!b || !entry)
		return NULL;
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->created_ns = ctx->now_ns;
	entry->expires_ns = ctx->now_ns + service_timeout(ctx);
	entry->service_id = service->service_id;
	entry->endpoint_id = ctx->src_endpoint;
	entry->direction = DIR_EGRESS;
	entry->nat_address = b->address;
	entry->nat_port = b->port;
	entry->nat_slot = slot;
	*reason = DROP_CT_MAP_INSERTION_FAILED;
	return ct.update(&ctx->key, entry) ? NULL : entry;
}

/* If the packet goes to a Service: ctx->service_* say to which, `*to` and `*port` to which backend instead. Returns 1
 * for a Service, 0 for none, or a negative drop reason. ctx->key is spoilt.
 *
 * Packets that may open something ask the Services first, which is all that a connection to elsewhere pays; packets
 * inside a TCP connection ask conntrack alone, so that they outlive their Service. */
INLINE int service_backend(struct pkt_ctx *ctx, struct addr *to, u16 *port)
{
	bool inside = ctx->protocol == PROTO_TCP && !(ctx->flags & CTX_F_SYN);
	struct service_info *service = NULL;
	struct ct_entry *chosen;
	int reason;

	if (!inside) {
		struct service_key key = { .address = ctx->daddr, .port = ctx->dport, .protocol = ctx->protocol };

		service = services.lookup(&key);
		if (!service)
			return 0;
	}
	ctx->key.scope = CT_SCOPE_SERVICE;
	chosen = ct.lookup(&ctx->key);
	if (chosen && keeps_backend(ctx, chosen)) {
		ctx->service_id = chosen->service_id;
		chosen->expires_ns = ctx->now_ns + service_timeout(ctx);
	} else if (service) {
		chosen = choose_backend(ctx, service, &reason);
		if (!chosen)
			return -reason;
	} else {
		return 0;
	}
	ctx->service_address = ctx->daddr;
	ctx->service_port = ctx->dport;
	*to = chosen->nat_address;
	*port = chosen->nat_port;
	return 1;
}

/* A Service's address that was not translated: another port of it, or a packet inside a connection that nobody
 * remembers. Not ours to send into the network. */
INLINE bool is_service_address(const struct pkt_ctx *ctx)
{
	struct service_key key = { .address = ctx->daddr, .port = ctx->dport, .protocol = ctx->protocol };

	if (services.lookup(&key))
		return true;
	key.port = 0;
	key.protocol = 0;
	return services.lookup(&key) != NULL;
}
