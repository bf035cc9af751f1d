/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which process is behind a socket. Hooks on the cgroup of all that runs on the node; a unit of its own, which a node
 * can do without (services/agent/processes.py).
 *
 * connect4/6    a TCP client: the process is known, its port not yet
 * sockops       its handshake begins: now the port is known, too
 * post_bind4/6  a server, or a client that chose its port */
#include "lib/process.h"

enum { GO_ON = 1, HANDSHAKE_BEGINS = 3 /* BPF_SOCK_OPS_TCP_CONNECT_CB */ };

struct pid_in_namespace {
	u32 pid;
	u32 tgid;
};

/* Newer than BCC's own list. */
static long (*pid_in)(u64 device, u64 inode, struct pid_in_namespace *found, u32 size) = (void *)120;
static u64 (*netns_cookie)(void *ctx) = (void *)122;

INLINE void describe(struct process *p)
{
	struct pid_in_namespace found = {};
	struct process_settings *settings;
	u32 zero = 0;

	settings = process_config.lookup(&zero);
	if (settings && settings->inode && !pid_in(settings->device, settings->inode, &found, sizeof(found)))
		p->pid = found.tgid;
	else
		p->pid = bpf_get_current_pid_tgid() >> 32;
	p->cgroup = bpf_get_current_cgroup_id();
	bpf_get_current_comm(p->name, sizeof(p->name));
}

INLINE void tell(const struct process *p)
{
	struct process *e = process_events.ringbuf_reserve(sizeof(*e));

	if (!e)
		return;
	*e = *p;
	/* Nobody is woken: who reads flows looks here first. */
	process_events.ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

INLINE int connects(struct bpf_sock_addr *ctx)
{
	struct process p = { .protocol = PROTO_TCP };
	u64 cookie;

	if (ctx->protocol != PROTO_TCP)
		return GO_ON;
	p.netns = netns_cookie(ctx);
	describe(&p);
	cookie = bpf_get_socket_cookie(ctx);
	connecting.update(&cookie, &p);
	return GO_ON;
}

int process_connect4(struct bpf_sock_addr *ctx)
{
	return connects(ctx);
}

int process_connect6(struct bpf_sock_addr *ctx)
{
	return connects(ctx);
}

int process_sockops(struct bpf_sock_ops *ctx)
{
	struct process *known;
	u64 cookie;

	if (ctx->op != HANDSHAKE_BEGINS)
		return GO_ON;
	cookie = bpf_get_socket_cookie(ctx);
	known = connecting.lookup(&cookie);
	if (!known)
		return GO_ON;
	known->port = ctx->local_port;
	tell(known);
	connecting.delete(&cookie);
	return GO_ON;
}

INLINE int bound(struct bpf_sock *ctx)
{
	struct process p = { .protocol = ctx->protocol, .listens = 1, .port = ctx->src_port };
	struct port_key key = {};

	if (p.protocol != PROTO_TCP && p.protocol != PROTO_UDP && p.protocol != PROTO_SCTP)
		return GO_ON;
	p.netns = netns_cookie(ctx);
	describe(&p);
	key.netns = p.netns;
	key.port = p.port;
	key.protocol = p.protocol;
	listeners.update(&key, &p);
	tell(&p);
	return GO_ON;
}

int process_bind4(struct bpf_sock *ctx)
{
	return bound(ctx);
}

int process_bind6(struct bpf_sock *ctx)
{
	return bound(ctx);
}
