/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Kernel events (services/agent/abi/events.py): one record size per ring, so that user space reads a batch as one
 * strided array. New fields go into the padding at the end, EVENT_VERSION goes up. */
#pragma once
#include "context.h"

#define EVENT_VERSION 2

enum event_type {
	EVENT_NEW = 1,
	EVENT_DROP = 2,
	EVENT_UPDATE = 3,
	EVENT_CLOSE = 4,
	EVENT_VERDICT_CHANGE = 5,
	EVENT_HTTP_REQUEST = 6,
	EVENT_DNS_QUERY = 9,
	EVENT_DNS_ANSWER = 10,
	EVENT_TLS_HELLO = 11,
	EVENT_TYPES = 16,
};

enum event_flags {
	EVENT_F_AUDIT = 1, /* passed, though policy refuses it: drop_reason says why it would have been dropped */
};

/* event_header.subtype of EVENT_HTTP_REQUEST. */
enum http_event_subtype {
	HTTP_EVENT_REQUEST = 0,  /* refused, or without a response that could be told to be its */
	HTTP_EVENT_ANSWERED = 1, /* with its response: status and latency */
};

struct event_header {
	u8 type;
	u8 subtype;
	u8 version;
	u8 flags; /* EVENT_F_* */
	u16 endpoint_id;
	u16 cpu;
	u64 time_ns; /* CLOCK_MONOTONIC */
};
_Static_assert(sizeof(struct event_header) == 16, "event_header");

/* Original direction's addresses, whatever packet raised the event; of a DROP the packet's. */
struct event_connection {
	struct addr saddr;
	struct addr daddr;
	u16 sport; /* network order; ICMP: type in sport, code in dport (host's numbers in network order) */
	u16 dport;
	u8 protocol;
	u8 tcp_flags;
	u8 direction; /* enum direction, as seen by the header's endpoint */
	u8 ct_state;  /* enum ct_status */
	u32 src_identity;
	u32 dst_identity;
	u32 rule_id;
	u32 policy_revision;
	u8 drop_reason;
	u8 match_type;
	u16 pad0;
	u32 service_id;
};
_Static_assert(sizeof(struct event_connection) == 64, "event_connection");

struct flow_event {
	struct event_header header;
	struct event_connection connection;
	u32 packets[2]; /* [0] original direction, [1] reply */
	u64 bytes[2];
	u32 rtt_us;
	u32 retransmits;
	u32 duration_us;
	u32 l7_ruleset;
};
_Static_assert(sizeof(struct flow_event) == 120, "flow_event");

/* A request's place in a trace, as its `traceparent` gives it (W3C Trace Context). */
struct http_trace {
	u8 trace_id[16];
	u8 parent_id[8];
	u8 trace_flags; /* 1: sampled */
	u8 pad2[7];
};
_Static_assert(sizeof(struct http_trace) == 32, "http_trace");

struct http_event {
	struct event_header header;
	struct event_connection connection;
	u8 http_version; /* 10, 11; 0 = not known */
	u8 method_len;
	u16 status;   /* of the response; the kernel's own answer (403) with a drop_reason; 0 = none */
	u16 path_len; /* of the whole path; more than 136 = cut */
	u16 traced;   /* 1: `trace` was written */
	u32 latency_us; /* since the request's head was complete: of the response's head, or of this record */
	u32 l7_ruleset;
	char method[16];
	char path[136];
	struct http_trace trace;
};
_Static_assert(sizeof(struct http_event) == 280, "http_event");

#define NAME_EVENT_ADDRESSES 8

/* A DNS question or answer, or a TLS client's first message. */
struct name_event {
	struct event_header header;
	struct event_connection connection;
	u32 ttl;        /* seconds, the lowest of the answer */
	u32 latency_us; /* from question to answer */
	u32 l7_ruleset;
	u16 id;
	u16 qtype;
	u16 answers; /* addresses in the answer; more than 8: the rest is left out here */
	u8 rcode;
	u8 name_len;
	u16 aliases_len; /* 0: `aliases` was not written */
	u8 pad1[18];
	struct addr addresses[NAME_EVENT_ADDRESSES];
	char name[256];
	char aliases[256]; /* that the answer leads over: names, each with a final dot and a zero */
};
_Static_assert(sizeof(struct name_event) == 760, "name_event");

/* Events of connections and of requests: a lane of records per CPU, written without locks or barriers and read from memory.
 * The kernel's ring buffer costs 80 ns more per event, and makes the CPU wait until all that it wrote before has arrived.
 * Places 2 * cpu of the map are the lanes' heads; the lanes follow. The loader makes the map as large as the node needs, and says in the
 * heads where the lanes are. */
struct event_lane {
	u64 written; /* records ever: the last thing that an event writes */
	u32 mask;    /* records of a lane, a power of two, minus 1; 0: not set up */
	u32 first;   /* index of the lane's first record */
	u64 base;    /* number of the record that is in the lane's first place: moves while the lane is empty, only then */
	u64 pad[5];
	u64 taken; /* of these, by the reader; on a cache line of its own */
	u64 pad2[6];
};
_Static_assert(sizeof(struct event_lane) == sizeof(struct flow_event), "event_lane"); /* the smallest record */

BPF_F_TABLE("array", u32, struct flow_event, events, 65536, 1024 /* MMAPABLE */);
BPF_F_TABLE("array", u32, struct http_event, http_events, 65536, 1024);

/* Pages of ring; powers of two. */
BPF_RINGBUF_OUTPUT(name_events, 1024);
/* struct flow_event of calls that sock.c refuses. Such a program may be interrupted by those that write the lanes. */
BPF_RINGBUF_OUTPUT(sock_events, 16);

/* Events of each kind (index: enum event_type) that found the ring full. Exact: nothing else loses events here. */
PERCPU_MAP(lost, u64, EVENT_TYPES);

/* Readers poll every few milliseconds; beyond so many events on one CPU they are also woken. */
#define EVENTS_PER_WAKEUP 4096

INLINE void count_lost(u32 type)
{
	u64 *count = lost.lookup(&type);

	if (count)
		*count += 1;
}

INLINE u32 lane_head(void)
{
	return 2 * bpf_get_smp_processor_id();
}

/* Where the next record goes; no record has number 0. An empty lane starts again at its first place: while the reader
 * keeps up, all that is written stays within memory that this CPU's cache still has, however large the lane is. Not where
 * the reader's loads might be later than its store of `taken`. */
INLINE u32 lane_place(struct event_lane *lane)
{
	u64 written, waiting;

	if (!lane)
		return 0;
	written = lane->written;
	waiting = written - *(volatile u64 *)&lane->taken;
	if (unlikely(waiting > lane->mask) || unlikely(!lane->mask))
		return 0;
#ifdef IN_ORDER
	if (!waiting)
		*(volatile u64 *)&lane->base = written;
#endif
	return lane->first + ((written - lane->base) & lane->mask);
}

/* The record is complete. Programs of one CPU do not interrupt one another, so it is the one that was reserved last. */
INLINE void lane_advance(struct event_lane *lane)
{
	asm volatile("" ::: "memory");
	if (lane)
		*(volatile u64 *)&lane->written = lane->written + 1;
}

/* Room for an event, or NULL. What was there before is still there. */
INLINE struct flow_event *flow_event_reserve(void)
{
	u32 head = lane_head(), place = lane_place((struct event_lane *)events.lookup(&head));

	return place ? events.lookup(&place) : NULL;
}

INLINE void flow_event_submit(void)
{
	u32 head = lane_head();

	lane_advance((struct event_lane *)events.lookup(&head));
}

INLINE struct http_event *http_event_reserve(void)
{
	u32 head = lane_head(), place = lane_place((struct event_lane *)http_events.lookup(&head));

	return place ? http_events.lookup(&place) : NULL;
}

INLINE void http_event_submit(void)
{
	u32 head = lane_head();

	lane_advance((struct event_lane *)http_events.lookup(&head));
}

INLINE u64 wakeup_flags(struct pkt_ctx *ctx)
{
	ctx->events += 1;
	return (ctx->events & (EVENTS_PER_WAKEUP - 1)) ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP;
}

INLINE void event_header_at(struct event_header *header, u8 type, u32 endpoint_id, u64 time_ns)
{
	header->type = type;
	header->subtype = 0;
	header->version = EVENT_VERSION;
	header->flags = 0;
	header->endpoint_id = endpoint_id;
	header->cpu = bpf_get_smp_processor_id();
	header->time_ns = time_ns;
}

INLINE void event_header_fill(struct event_header *header, u8 type, u32 endpoint_id)
{
	event_header_at(header, type, endpoint_id, bpf_ktime_get_ns());
}
