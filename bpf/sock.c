/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services at the socket: a local client that connects to one gets a backend's address before there is any packet.
 * Hooks on the cgroup of all that runs on the node (services/agent/datapath/cgroup.py); a unit of its own.
 *
 * connect4/6, sendmsg4/6      the Service's address and port become a backend's; refused when there is none
 * recvmsg4/6, getpeername4/6  the backend's become the Service's again
 * release                     forget the socket
 *
 * What no socket hook sees (SCTP, raw sockets, packets that are forwarded) is translated by tc (lib/service_path.h). */
#include "lib/drop_reasons.h"
#include "lib/events.h"
#include "lib/lb.h"
#include "lib/node_port.h"
#include "lib/sock.h"

enum {
	SOCK_REFUSE = 0, /* the call fails */
	SOCK_GO_ON = 1,
	ECONNREFUSED_ = 111,
	EHOSTUNREACH_ = 113,
};

/* Newer than BCC's own list. */
static u64 (*sock_netns_cookie)(void *ctx) = (void *)122;
static int (*sock_set_retval)(int retval) = (void *)187;

/* Somebody asked for `wanted` and is refused. Who it was is the network namespace, which the agent knows (bytes[0]). */
INLINE void tell_refused(struct bpf_sock_addr *ctx, const struct sock_entry *wanted)
{
	struct flow_event *e = sock_events.ringbuf_reserve(sizeof(*e));
	u32 type = EVENT_DROP;
	u64 *count;

	if (!e) {
		count = lost.lookup(&type);
		if (count)
			__sync_fetch_and_add(count, 1);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	event_header_fill(&e->header, EVENT_DROP, 0);
	e->connection.daddr = wanted->address;
	e->connection.dport = wanted->port;
	e->connection.protocol = ctx->protocol;
	e->connection.direction = DIR_EGRESS;
	e->connection.drop_reason = DROP_SERVICE_BACKEND_NOT_FOUND;
	e->connection.service_id = wanted->service_id;
	e->bytes[0] = wanted->netns;
	sock_events.ringbuf_submit(e, 0);
}

INLINE int refuse(struct bpf_sock_addr *ctx, const struct sock_entry *wanted, int error)
{
	tell_refused(ctx, wanted);
	sock_set_retval(-error);
	return SOCK_REFUSE;
}

/* A Service's address, but none of its ports. Resolvers connect UDP sockets to learn which source address they would get,
 * and send nothing: nobody is told of those. */
INLINE int refuse_port(struct bpf_sock_addr *ctx, const struct sock_entry *wanted, bool connects)
{
	if (!connects || ctx->protocol != PROTO_UDP)
		return refuse(ctx, wanted, ECONNREFUSED_);
	sock_set_retval(-ECONNREFUSED_);
	return SOCK_REFUSE;
}

/* A new connection (`connects`) or a single message goes to *address, *port: replace them if that is a Service. */
INLINE int to_backend(struct bpf_sock_addr *ctx, struct addr *address, u16 *port, bool connects)
{
	struct service_key frontend = { .address = *address, .port = *port, .protocol = ctx->protocol };
	struct sock_key key = { .protocol = ctx->protocol };
	struct sock_entry entry = { .address = *address, .port = *port };
	struct lb_client client = { .kind = LB_CLIENT_NETNS };
	struct service_info *service;
	struct backend *backend;
	u32 slot = 0;
	u8 *seen;

	if (ctx->protocol != PROTO_TCP && ctx->protocol != PROTO_UDP)
		return SOCK_GO_ON;
	entry.netns = sock_netns_cookie(ctx);
	service = sock_service(&frontend, entry.netns);
	if (!service)
		return service_find(address, 0, 0, SCOPE_INTERNAL) ? refuse_port(ctx, &entry, connects) : SOCK_GO_ON;
	client.address.w[0] = entry.netns;
	client.address.w[1] = entry.netns >> 32;
	client.now_ns = bpf_ktime_get_coarse_ns();
	entry.service_id = service->service_id;
	backend = lb_select(&frontend, service, &client, &slot);
	if (!backend)
		return refuse(ctx, &entry, service->flags & SERVICE_F_REFUSE ? ECONNREFUSED_ : EHOSTUNREACH_);
	key.cookie = bpf_get_socket_cookie(ctx);
	entry.backend = backend->address;
	entry.backend_port = backend->port;
	if (!connects) {
		key.backend = entry.backend;
		key.port = entry.backend_port;
	}
	/* Without an entry the client would not recognise answers: better no connection than one that hangs. */
	if (sockets.update(&key, &entry))
		return refuse(ctx, &entry, EHOSTUNREACH_);
	seen = sock_port(entry.backend_port);
	if (seen && !*seen)
		*seen = 1;
	*address = entry.backend;
	*port = entry.backend_port;
	return SOCK_GO_ON;
}

/* Something came from *address, *port, or that is whom the socket is connected to: replace them by what it asked for.
 * 1 if so. */
INLINE bool to_service(struct bpf_sock_addr *ctx, struct addr *address, u16 *port)
{
	struct sock_entry *entry;

	if ((ctx->protocol != PROTO_TCP && ctx->protocol != PROTO_UDP) || !sock_port_seen(*port))
		return false;
	entry = sock_find(bpf_get_socket_cookie(ctx), address, *port, ctx->protocol);
	if (!entry)
		return false;
	*address = entry->address;
	*port = entry->port;
	return true;
}

INLINE int forward4(struct bpf_sock_addr *ctx, bool connects)
{
	struct addr address;
	u16 port = ctx->user_port;
	int verdict;

	addr_set_v4(&address, ctx->user_ip4);
	verdict = to_backend(ctx, &address, &port, connects);
	ctx->user_ip4 = address.w[3];
	ctx->user_port = port;
	return verdict;
}

INLINE int reverse4(struct bpf_sock_addr *ctx)
{
	struct addr address;
	u16 port = ctx->user_port;

	addr_set_v4(&address, ctx->user_ip4);
	if (to_service(ctx, &address, &port)) {
		ctx->user_ip4 = address.w[3];
		ctx->user_port = port;
	}
	return SOCK_GO_ON;
}

INLINE void address_of6(const struct bpf_sock_addr *ctx, struct addr *address)
{
	address->w[0] = ctx->user_ip6[0];
	address->w[1] = ctx->user_ip6[1];
	address->w[2] = ctx->user_ip6[2];
	address->w[3] = ctx->user_ip6[3];
}

INLINE void write6(struct bpf_sock_addr *ctx, const struct addr *address, u16 port)
{
	ctx->user_ip6[0] = address->w[0];
	ctx->user_ip6[1] = address->w[1];
	ctx->user_ip6[2] = address->w[2];
	ctx->user_ip6[3] = address->w[3];
	ctx->user_port = port;
}

/* IPv4 on an IPv6 socket is ::ffff:a.b.c.d, which is also how IPv4 is written in our maps. */
INLINE int forward6(struct bpf_sock_addr *ctx, bool connects)
{
	struct addr address;
	u16 port = ctx->user_port;
	int verdict;

	address_of6(ctx, &address);
	verdict = to_backend(ctx, &address, &port, connects);
	write6(ctx, &address, port);
	return verdict;
}

INLINE int reverse6(struct bpf_sock_addr *ctx)
{
	struct addr address;
	u16 port = ctx->user_port;

	address_of6(ctx, &address);
	if (to_service(ctx, &address, &port))
		write6(ctx, &address, port);
	return SOCK_GO_ON;
}

int sock_connect4(struct bpf_sock_addr *ctx)
{
	return forward4(ctx, true);
}

int sock_connect6(struct bpf_sock_addr *ctx)
{
	return forward6(ctx, true);
}

int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward4(ctx, false);
}

int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	return forward6(ctx, false);
}

int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return reverse4(ctx);
}

int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return reverse6(ctx);
}

int sock_getpeername4(struct bpf_sock_addr *ctx)
{
	return reverse4(ctx);
}

int sock_getpeername6(struct bpf_sock_addr *ctx)
{
	return reverse6(ctx);
}

int sock_release(struct bpf_sock *ctx)
{
	struct sock_key key = { .protocol = ctx->protocol };

	if (key.protocol != PROTO_TCP && key.protocol != PROTO_UDP)
		return SOCK_GO_ON;
	/* Port 0: it is connected no longer, or never was. */
	if (ctx->dst_port && !sock_port_seen(ctx->dst_port))
		return SOCK_GO_ON;
	key.cookie = bpf_get_socket_cookie(ctx);
	sockets.delete(&key);
	return SOCK_GO_ON;
}
