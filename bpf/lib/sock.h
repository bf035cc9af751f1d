/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a socket was connected to, seen from the backend that it got (services/agent/abi/sock.py): so that it can be
 * told the address that it asked for, so that flows name the Service, and so that it can be closed with its backend. */
#pragma once
#include "types.h"

struct sock_key {
	u64 cookie;          /* of the socket */
	struct addr backend; /* unconnected UDP talks to many; of a connected socket it is the value that knows: 0 here */
	u16 port;            /* network order; likewise */
	u8 protocol;
	u8 pad[5];
};
_Static_assert(sizeof(struct sock_key) == 32, "sock_key");

struct sock_entry {
	struct addr address; /* the Service's, as the client gave it */
	struct addr backend;
	u64 netns; /* cookie of the socket's network namespace */
	u32 service_id;
	u16 port; /* network order, as the other */
	u16 backend_port;
};
_Static_assert(sizeof(struct sock_entry) == 48, "sock_entry");

/* One entry per connected socket, removed when that is closed, however its connection went; and one per backend of
 * unconnected UDP, which make way by age. */
BPF_F_TABLE("lru_hash", struct sock_key, struct sock_entry, sockets, 131072, 0);

/* Ports of backends that sockets were ever connected to, by 256, so that most others (those that were accepted have ports
 * that clients were given at random) are known at a glance to be none of `sockets`. A byte each, because stores of bytes
 * need no atomics; few, because they have to be at hand. */
struct sock_ports {
	u8 seen[256];
};
_Static_assert(sizeof(struct sock_ports) == 256, "sock_ports");

ARRAY_MAP(sock_ports, struct sock_ports, 1);

/* `port` in network order. */
INLINE u8 *sock_port(u16 port)
{
	u32 zero = 0;
	struct sock_ports *ports = sock_ports.lookup(&zero);

	return ports ? &ports->seen[port & 255] : NULL;
}

/* False: no socket was ever connected to a backend with this port. */
INLINE bool sock_port_seen(u16 port)
{
	u8 *seen = sock_port(port);

	return !seen || *seen;
}

INLINE struct sock_entry *sock_find(u64 cookie, const struct addr *backend, u16 port, u8 protocol)
{
	struct sock_key key = { .cookie = cookie, .protocol = protocol };
	struct sock_entry *entry = sockets.lookup(&key);

	if (entry && entry->backend_port == port && addr_equal(&entry->backend, backend))
		return entry;
	if (protocol != PROTO_UDP)
		return NULL;
	key.backend = *backend;
	key.port = port;
	return sockets.lookup(&key);
}
