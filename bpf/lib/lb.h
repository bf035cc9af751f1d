/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services (services/agent/abi/lb.py): frontends, the backends behind them, and which of them a client gets.
 *
 * For every kind of program (tc, XDP, cgroup): nothing here knows of packets or of connections. `service_find` says
 * whether an address and port is a Service's, `lb_source_allowed` whether an outside client may use it, `lb_select`
 * which backend a new connection gets; remembering the choice is the caller's business. */
#pragma once
#include "types.h"

/* Who asks. Frontends that the outside may use are there twice, because the two may get different backends. */
enum service_scope {
	SCOPE_INTERNAL = 0, /* pods and the node's own processes */
	SCOPE_EXTERNAL = 1, /* packets that come in by the node's devices */
};

enum service_flags {
	SERVICE_F_REFUSE = 1,         /* nobody serves it anywhere: tell the client. Without it, and with no backends: drop */
	SERVICE_F_LOCAL = 2,          /* backends of this node only: the client's address is kept */
	SERVICE_F_AFFINITY = 4,       /* a client keeps its backend for affinity_timeout seconds */
	SERVICE_F_MAGLEV = 8,         /* the backend comes from table `maglev`, the same on every node */
	SERVICE_F_SOURCE_RANGES = 16, /* outside clients are looked up in `source_ranges` ... */
	SERVICE_F_SOURCE_DENY = 32,   /* ... and refused if they are there, not if they are absent */
	SERVICE_F_DSR = 64,           /* remote backends answer the client themselves */
	SERVICE_F_WILDCARD = 128,     /* stands for every other port of the address: drop */
	SERVICE_F_NODE_PORT = 256,    /* the address is the node's own: other ports are the node's */
	SERVICE_F_HOST_PORT = 512,    /* likewise, for a pod's hostPort */
};

enum backend_flags {
	BACKEND_F_LOCAL = 1, /* a pod of this node */
};

struct service_key {
	struct addr address;
	u16 port; /* network order; 0 with protocol 0: any other port of the address */
	u8 protocol;
	u8 scope; /* enum service_scope */
};
_Static_assert(sizeof(struct service_key) == 20, "service_key");

/* A service id names a set of backends: a port of a Service, one family, and which of its endpoints. All frontends
 * with the same set (cluster address, node addresses, ...) share it. */
struct service_info {
	u32 service_id;
	u32 backend_count; /* those that new connections may get: slots 0 ... count - 1 */
	u32 flags;         /* SERVICE_F_* */
	u32 affinity_timeout; /* seconds */
	u32 maglev_size;      /* entries of the service's look-up table */
	u32 maglev_seed;
};
_Static_assert(sizeof(struct service_info) == 24, "service_info");

struct backend_key {
	u32 service_id;
	u32 slot;
};
_Static_assert(sizeof(struct backend_key) == 8, "backend_key");

struct backend {
	struct addr address;
	u16 port; /* network order */
	u8 protocol;
	u8 flags; /* BACKEND_F_* */
};
_Static_assert(sizeof(struct backend) == 20, "backend");

/* Where a backend is in its set; only for services with affinity, whose clients remember addresses, not slots. */
struct backend_slot_key {
	struct addr address;
	u32 service_id;
	u16 port; /* network order */
	u16 pad;
};
_Static_assert(sizeof(struct backend_slot_key) == 24, "backend_slot_key");

/* Look-up tables in pieces, so that only services that use them cost memory. Piece n of a service's table has the slots
 * of entries n * 1024 ... A piece is replaced as a whole, entries of a service are never newer than its backends. */
enum {
	MAGLEV_PIECE = 1024,
};
struct maglev_key {
	u32 service_id;
	u32 piece;
};
_Static_assert(sizeof(struct maglev_key) == 8, "maglev_key");

struct maglev_piece {
	u16 slots[MAGLEV_PIECE];
};
_Static_assert(sizeof(struct maglev_piece) == 2048, "maglev_piece");

/* How affinity knows a client. */
enum lb_client_kind {
	LB_CLIENT_ADDRESS = 0,
	LB_CLIENT_NETNS = 1, /* network namespace cookie in the address's first two words, the others 0 */
};

struct affinity_key {
	struct addr client;
	u32 service_id;
	u8 kind; /* enum lb_client_kind */
	u8 pad[3];
};
_Static_assert(sizeof(struct affinity_key) == 24, "affinity_key");

struct affinity_entry {
	struct addr address; /* the backend's */
	u16 port;            /* network order */
	u16 pad;
	u32 pad2;
	u64 used_ns; /* coarse monotonic clock: when the client last asked */
};
_Static_assert(sizeof(struct affinity_entry) == 32, "affinity_entry");

struct source_range_key {
	u32 prefixlen; /* 32 of the service id, 96 more for IPv4 */
	u32 service_id;
	struct addr address;
};
_Static_assert(sizeof(struct source_range_key) == 24, "source_range_key");

struct revnat {
	struct addr address;
	u16 port;
	u16 pad;
};
_Static_assert(sizeof(struct revnat) == 20, "revnat");

HASH_MAP(services, struct service_key, struct service_info, 131072);
HASH_MAP(backends, struct backend_key, struct backend, 262144);
HASH_MAP(backend_slots, struct backend_slot_key, u32, 65536);
HASH_MAP(maglev, struct maglev_key, struct maglev_piece, 32768);
LPM_MAP(source_ranges, struct source_range_key, u32, 65536);
BPF_F_TABLE("lru_hash", struct affinity_key, struct affinity_entry, affinity, 65536, 0);
/* For people and tools: the address by which a service id is best known. Packets take theirs from conntrack. */
HASH_MAP(revnat, u32, struct revnat, 131072);

/* A client of a Service, as the chooser sees it. */
struct lb_client {
	struct addr address; /* or its network namespace, see kind */
	u16 port;            /* network order; 0 where there is none yet */
	u8 kind;             /* enum lb_client_kind */
	u8 pad;
	u32 pad2;
	u64 now_ns; /* coarse monotonic clock */
};

/* The Service behind an address and port, or NULL. */
INLINE struct service_info *service_find(const struct addr *address, u16 port, u8 protocol, u8 scope)
{
	struct service_key key = { .address = *address, .port = port, .protocol = protocol, .scope = scope };

	return services.lookup(&key);
}

/* A Service's address, whatever the port: not ours to send into the network. */
INLINE bool service_has_address(const struct addr *address, u16 port, u8 protocol, u8 scope)
{
	return service_find(address, port, protocol, scope) || service_find(address, 0, 0, scope);
}

INLINE struct backend *backend_at(u32 service_id, u32 slot)
{
	struct backend_key key = { .service_id = service_id, .slot = slot };

	return backends.lookup(&key);
}

/* May a client from outside use the Service? */
INLINE bool lb_source_allowed(const struct service_info *service, const struct addr *client)
{
	struct source_range_key key = { .prefixlen = 32 + 128, .service_id = service->service_id, .address = *client };

	if (likely(!(service->flags & SERVICE_F_SOURCE_RANGES)))
		return true;
	return !source_ranges.lookup(&key) == !!(service->flags & SERVICE_F_SOURCE_DENY);
}

/* murmur3's mixing of one word, and its end. */
INLINE u32 lb_mix(u32 hash, u32 word)
{
	word *= 0xcc9e2d51;
	word = (word << 15) | (word >> 17);
	hash ^= word * 0x1b873593;
	hash = (hash << 13) | (hash >> 19);
	return hash * 5 + 0xe6546b64;
}

/* The same connection has the same hash on every node. With affinity all connections of a client have. */
INLINE u32 lb_hash(const struct service_key *frontend, const struct service_info *service,
		   const struct lb_client *client)
{
	u32 hash = service->maglev_seed;
	int i;

#pragma unroll
	for (i = 0; i < 4; i++)
		hash = lb_mix(hash, client->address.w[i]);
#pragma unroll
	for (i = 0; i < 4; i++)
		hash = lb_mix(hash, frontend->address.w[i]);
	hash = lb_mix(hash, (service->flags & SERVICE_F_AFFINITY) ? 0 : client->port);
	hash = lb_mix(hash, frontend->port | ((u32)frontend->protocol << 16));
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ (hash >> 16);
}

/* A slot by the look-up table; at random where a piece is missing. */
INLINE u32 lb_maglev_slot(const struct service_key *frontend, const struct service_info *service,
			  const struct lb_client *client)
{
	u32 entry = lb_hash(frontend, service, client) % (service->maglev_size ? service->maglev_size : 1);
	struct maglev_key key = { .service_id = service->service_id, .piece = entry / MAGLEV_PIECE };
	struct maglev_piece *piece = maglev.lookup(&key);

	return piece ? piece->slots[entry & (MAGLEV_PIECE - 1)] : bpf_get_prandom_u32() % service->backend_count;
}

/* The backend that this client had, if it is still one and the time is not over. */
INLINE struct backend *lb_remembered(const struct affinity_key *key, const struct service_info *service,
				     const struct lb_client *client, u32 *slot)
{
	struct affinity_entry *entry = affinity.lookup(key);
	struct backend_slot_key at = { .service_id = service->service_id };
	u32 *found;

	if (!entry || client->now_ns > entry->used_ns + service->affinity_timeout * 1000000000ULL)
		return NULL;
	at.address = entry->address;
	at.port = entry->port;
	found = backend_slots.lookup(&at);
	if (!found || *found >= service->backend_count)
		return NULL;
	entry->used_ns = client->now_ns;
	*slot = *found;
	return backend_at(service->service_id, *slot);
}

/* The backend for a new connection and its slot; NULL: there is none (SERVICE_F_REFUSE says whether to tell). */
INLINE struct backend *lb_select(const struct service_key *frontend, const struct service_info *service,
				 const struct lb_client *client, u32 *slot)
{
	struct affinity_key key = { .client = client->address, .service_id = service->service_id, .kind = client->kind };
	struct affinity_entry entry = {};
	struct backend *chosen;
	u32 count = service->backend_count;

	if (unlikely(!count))
		return NULL;
	if (unlikely(service->flags & SERVICE_F_AFFINITY)) {
		chosen = lb_remembered(&key, service, client, slot);
		if (chosen)
			return chosen;
	}
	if (unlikely(service->flags & SERVICE_F_MAGLEV))
		*slot = lb_maglev_slot(frontend, service, client);
	else
		*slot = bpf_get_prandom_u32() % count;
	chosen = backend_at(service->service_id, *slot);
	if (unlikely(service->flags & SERVICE_F_AFFINITY) && chosen) {
		entry.address = chosen->address;
		entry.port = chosen->port;
		entry.used_ns = client->now_ns;
		affinity.update(&key, &entry);
	}
	return chosen;
}
