/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whose sockets they are (services/agent/abi/process.py): port of a network namespace -> the process that bound or
 * connected it. For people who read flows; nothing is decided by it. */
#pragma once
#include "types.h"

enum { PROCESS_NAME = 16 };

struct process {
	u64 netns;  /* cookie of the socket's network namespace */
	u64 cgroup; /* id of the process's */
	u32 pid;    /* of the process, in the agent's process namespace */
	u16 port;   /* host order */
	u8 protocol;
	u8 listens; /* the port was bound, not given at a connect */
	char name[PROCESS_NAME];
};
_Static_assert(sizeof(struct process) == 40, "process");

struct port_key {
	u64 netns;
	u16 port; /* host order */
	u8 protocol;
	u8 pad[5];
};
_Static_assert(sizeof(struct port_key) == 16, "port_key");

/* The agent's process namespace: pids are told as it knows them. 0 = the node's first one. */
struct process_settings {
	u64 device;
	u64 inode;
};

ARRAY_MAP(process_config, struct process_settings, 1);

/* Between a connect, which knows the process, and the handshake, which knows the port, microseconds later: cookie ->
 * process. So small that its buckets stay in the cache, which is 0.1 of the 0.5 us that the connect's program takes. */
BPF_F_TABLE("lru_hash", u64, struct process, connecting, 2048, 0);

/* Ports that were bound: an agent that comes back asks who serves. */
BPF_F_TABLE("lru_hash", struct port_key, struct process, listeners, 16384, 0);

/* Both, as they happen. A full ring costs names in flows, not flows. */
BPF_RINGBUF_OUTPUT(process_events, 64);
