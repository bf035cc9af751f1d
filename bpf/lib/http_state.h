/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is remembered of a connection under HTTP policy (services/agent/abi/http.py). Keyed by the conntrack key
 * of the endpoint that has the rules, so that both directions find it. A missing entry lets no request pass: eviction fails closed.
 *
 * No lock. A program works on a copy and publishes it with a compare-and-swap on `version` (odd: being written); the
 * one that comes second, or meets a copy that changed under it, drops its packet, and TCP sends it again. Two packets
 * of one direction of one connection are on two CPUs at once only when the sender migrates or means harm.
 * `acked` stands apart: the server's own direction writes it, and an old value only means less is known to be there. */
#pragma once
#include "context.h"
#include "events.h"
#include "own_segment.h"

#define HTTP_METHOD_MAX 16 /* what an event holds */
#define HTTP_PATH_MAX 136
#define HTTP_TRACE_RAW 64 /* bytes of a traceparent's line that are looked at */

enum http_mode {
	HTTP_FOLLOWED = 0,
	HTTP_ANSWERED = 1, /* denied: the kernel answered for the server, which is gone */
	HTTP_RESET = 2,    /* refused in a way that has no HTTP answer: both sides were reset */
	HTTP_UNKNOWN = 3,  /* not HTTP, seen while no HTTP policy held; refused as soon as one does */
};

enum http_flags {
	HTTP_F_LENGTH = 1,
	HTTP_F_CODING = 2,
	HTTP_F_VERSION_10 = 4,
	HTTP_F_HOST = 8,
	HTTP_F_ABSOLUTE = 16,
	HTTP_F_PENDING = 32, /* the target alone does not decide, fields must */
	HTTP_F_DECIDED = 64, /* the request line is complete */
	HTTP_F_LINE = 128,   /* it has begun, and the request is not reported yet */
};

enum http_begun {
	HTTP_BEGUN_RULES = 1,     /* generation, ruleset and state are set */
	HTTP_BEGUN_UPGRADE = 2,   /* the request names an upgrade ... */
	HTTP_BEGUN_WEBSOCKET = 4, /* ... to a WebSocket ... */
	HTTP_BEGUN_CONFUSED = 8,  /* ... and to something else */
};

enum http_traces {
	HTTP_TRACES_NONE = 0,
	HTTP_TRACES_ONE = 1,
	HTTP_TRACES_MANY = 2, /* contradict one another: as if there were none */
};

enum http_fins {
	HTTP_FIN_CLIENT = 1,
	HTTP_FIN_SERVER = 2,
	HTTP_FIN_BOTH = 3,
};

/* Where in the grammar the stream is. */
struct http_parse {
	u64 hash;   /* of what this request has said so far, begun with a number that nobody knows */
	u64 remain; /* bytes of body or chunk that are still to come */
	u32 seq;    /* of the next byte */
	u32 generation;
	u32 head;     /* bytes of this request's head, or of a chunk's line */
	u32 line_seq; /* of the method's first byte */
	u32 path_seq; /* of the path's */
	u16 state;    /* of the policy automaton, with HTTP_ACCEPT */
	u16 ruleset;
	u16 path_len;
	u8 phase;
	u8 flags; /* HTTP_F_* */
	u8 digits;
	u8 escape; /* first hex digit of an escape, as sent */
	u8 method_len;
	u8 begun; /* enum http_begun */
	u8 method_saved; /* bytes that http_conn has of a line that began in an earlier packet */
	u8 path_saved;
	u16 root;    /* with HTTP_F_PENDING: the state in which a line of the head begins ... */
	u16 decided; /* ... conditions that the lines so far were about ... */
	u16 met;     /* ... and those that they meet */
};
_Static_assert(sizeof(struct http_parse) == 56, "http_parse");

#define HTTP_HOLES 4

struct http_flow {
	u64 hash;      /* of all earlier requests, begun with a random number */
	u64 snap_hash; /* up to snap.seq */
	u64 mark_digest; /* of hash and state at mark_seq */
	struct http_parse now;
	struct http_parse snap; /* at a packet before which the server had acknowledged everything */
	u32 mark_seq;   /* end of the first packet behind the snapshot */
	u32 body_start; /* the last body or chunk: bytes in here are not inspected, whoever sends them again */
	u32 body_end;
	struct {
		u32 start;
		u32 end;
	} holes[HTTP_HOLES]; /* in bodies, that were passed over and may still be filled */
	u32 answer_seq; /* of the first byte of the kernel's answer */
	u32 answer_end; /* behind its FIN */
	u32 grammar;    /* fingerprint that the phases belong to */
	u8 mode;        /* enum http_mode */
	u8 strikes;     /* repetitions in a row that nothing explains */
	u8 snapped;
	u8 marked;
	u8 traces;      /* enum http_traces: of this request's traceparent ... */
	u8 trace_saved; /* ... so many bytes came with earlier packets; http_conn has them ... */
	u16 trace_at;   /* ... and it begins here, from line_seq on */
};
_Static_assert(sizeof(struct http_flow) == 200, "http_flow");

enum http_waiting {
	HTTP_WAITS_NOT = 0,
	HTTP_WAITS = 1,
	HTTP_TAKEN = 2, /* by a program that is writing its event */
};

/* A request that was allowed and is not answered yet: both make one event. Whoever turns `waiting` from HTTP_WAITS into
 * HTTP_TAKEN reports it. */
struct http_asked {
	u64 complete_ns; /* when its head was */
	u64 waiting;     /* enum http_waiting */
	u32 rule_id;
	u32 src_identity;
	u32 policy_revision;
	u32 service_id;
	u16 ruleset;
	u16 path_len;
	u8 http_version; /* 10, 11 */
	u8 method_len;
	u8 match_type;
	u8 pipelined; /* requests came before answers: from here on nobody counts which belongs to which */
	u8 audited;   /* drop reason that the request would have had */
	u8 upgrade;   /* it asks for a WebSocket and nothing else */
	u8 traced;    /* it says which trace it belongs to: stands beside method and path */
	u8 pad;
	u32 line_seq; /* of its first byte */
};
_Static_assert(sizeof(struct http_asked) == 48, "http_asked");

struct http_conn {
	u64 version;
	u32 acked;  /* highest byte that the server has acknowledged: its rcv_nxt, or less */
	u32 first;  /* sequence number of the client's first byte ... */
	u32 opened; /* ... and of the server's SYN-ACK: together they tell a new connection on the same ports. The client
		     * chooses the one, the server the other. */
	u8 watched; /* while requests were only told, bytes passed that nobody has read */
	u8 tunnel;  /* the server has agreed to a WebSocket: no HTTP any more */
	u8 fins;    /* enum http_fins: who has closed */
	u8 cut;     /* a packet passed without the refused request at its end (http_cut.h), which comes again ... */
	u32 heard_seq; /* ... and meanwhile the server has said so much, ... */
	u32 pad;
	u64 heard_ns;  /* ... the last of it then; 0: nothing */
	struct http_flow flow;
	u8 method[HTTP_METHOD_MAX]; /* of a head that is not complete */
	u8 path[HTTP_PATH_MAX];
	struct http_asked asked;
	u8 asked_method[HTTP_METHOD_MAX];
	u8 asked_path[HTTP_PATH_MAX];
	struct http_trace asked_trace;
	u8 trace_raw[HTTP_TRACE_RAW]; /* of a head that is not complete, too; it is seldom needed */
};
_Static_assert(sizeof(struct http_conn) == 688, "http_conn");

BPF_F_TABLE("lru_hash", struct ct_key, struct http_conn, http_conns, 65536, 0);

#define HTTP_BUFFER 512 /* bytes that are loaded at once; a power of two */
#define HTTP_NOWHERE 0xffffffff
#define HTTP_TRACE_HINTS 64 /* a power of two */

/* What the HTTP programs hand to one another about the packet at hand. */
struct http_work {
	struct http_flow flow; /* the copy */
	struct http_parse held; /* what must not change while a repetition is compared */
	u64 held_hash;
	u64 held_digest;
	u32 held_start;
	u32 held_end;
	u64 version;   /* of the entry when it was copied */
	u32 acked;
	u32 expected;  /* what the connection was waiting for when the packet came */
	u32 pos;       /* payload bytes done */
	u32 limit;     /* payload bytes to do */
	u8 present;    /* there is an entry */
	u8 comparing;  /* the bytes passed before: are they the same? */
	u8 probing;    /* nothing is known of the connection: only look whether this request would be denied */
	u8 reason;     /* drop reason of a refusal */
	u8 answer;     /* enum http_answer */
	u8 action;     /* that the byte loop stopped at */
	u8 byte;
	u8 audit; /* nothing is refused: only told */
	u8 memorable; /* the head can be remembered (http_memo.h) */
	u8 pad[7];
	u16 masked;   /* where in the buffer a traceparent is blanked out; 0: nowhere */
	u16 traced_at; /* of the head that was read: where that would have been; 0: nowhere */
	u32 memo;     /* where; HTTP_NOWHERE: not at all */
	u64 tag;
	u64 line_hash; /* of the request whose head is complete */
	struct http_asked asked; /* waiting: a head of this packet is complete; its method, path and trace are those below */
	u32 buffer_at;   /* next byte in the buffer */
	u32 buffer_have; /* bytes in the buffer */
	u8 method[HTTP_METHOD_MAX];
	u8 path[HTTP_PATH_MAX]; /* the verifier sees larger writes: 256 bytes behind must be ours */
	u8 buffer[HTTP_BUFFER];
	u64 behind[4]; /* words may reach out of the buffer */
	struct http_trace trace;
	u8 trace_raw[HTTP_TRACE_RAW]; /* what follows the colon */
	u64 masked_text[7];           /* what was blanked out */
	u16 trace_hints[HTTP_TRACE_HINTS]; /* by length and rules of a head: where the last one's traceparent was */
	struct own_tcp own; /* an answer under construction */
	u8 zeros[HTTP_PATH_MAX]; /* never written */
};

PERCPU_MAP(http_scratch, struct http_work, 1);
PERCPU_MAP(http_fresh, struct http_conn, 1);

INLINE struct http_work *http_working(void)
{
	u32 zero = 0;

	return http_scratch.lookup(&zero);
}

/* A request whose head is not complete: its method and path so far belong to the connection. */
INLINE bool http_unreported(const struct http_parse *now)
{
	return now->flags & HTTP_F_LINE;
}

/* Where the processor keeps stores among themselves and loads among themselves in order, the compiler is all that has to
 * be kept from doing otherwise. Atomics wait for all earlier stores. */
INLINE u64 http_version(struct http_conn *conn)
{
#ifdef IN_ORDER
	u64 version = *(volatile u64 *)&conn->version;

	asm volatile("" ::: "memory");
	return version;
#else
	return __sync_fetch_and_add(&conn->version, 0);
#endif
}

/* The entry is ours to write; `version` is what it had when it was read. */
INLINE bool http_lock(struct http_conn *conn, u64 version)
{
	return __sync_val_compare_and_swap(&conn->version, version, version + 1) == version;
}

INLINE void http_unlock(struct http_conn *conn, u64 version)
{
#ifdef IN_ORDER
	asm volatile("" ::: "memory");
	*(volatile u64 *)&conn->version = version + 2;
#else
	__sync_fetch_and_add(&conn->version, 1);
#endif
}

/* False: somebody is writing it. */
INLINE bool http_copy(struct http_work *w, struct http_conn *conn)
{
	w->version = http_version(conn);
	if (w->version & 1)
		return false;
	w->flow = conn->flow;
	w->acked = conn->acked;
	if (http_unreported(&w->flow.now)) {
		__builtin_memcpy(w->method, conn->method, HTTP_METHOD_MAX);
		__builtin_memcpy(w->path, conn->path, HTTP_PATH_MAX);
		__builtin_memcpy(w->trace_raw, conn->trace_raw, HTTP_TRACE_RAW);
	}
	asm volatile("" ::: "memory");
	return http_version(conn) == w->version;
}

/* False: somebody else was faster, the packet must not pass. */
INLINE bool http_publish(struct http_work *w, struct http_conn *conn)
{
	if (!conn)
		return false;
	if (!http_lock(conn, w->version))
		return false;
	conn->flow = w->flow;
	if (http_unreported(&w->flow.now)) {
		__builtin_memcpy(conn->method, w->method, HTTP_METHOD_MAX);
		__builtin_memcpy(conn->path, w->path, HTTP_PATH_MAX);
		__builtin_memcpy(conn->trace_raw, w->trace_raw, HTTP_TRACE_RAW);
	}
	http_unlock(conn, w->version);
	return true;
}

INLINE u32 http_ranged(const struct http_flow *flow, u32 seq)
{
	return (s32)(seq - flow->body_start) >= 0 && (s32)(flow->body_end - seq) >= 0;
}
