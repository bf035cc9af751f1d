/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Tail calls. Slots and program names are mirrored by services/agent/abi/tailcall.py, from which the loader fills
 * the array. A call that returns found no program: the caller drops with MISSED_TAIL_CALL.
 * Budget (33 in the kernel): hook -> host_policy -> ingress -> http_entry -> http_parse... -> http_deny. */
#pragma once
#include "types.h"

enum tail_call {
	TAIL_INGRESS = 0,    /* ingress policy of ctx->dst_endpoint, then delivery */
	TAIL_HTTP_ENTRY = 1, /* a client -> server packet of a connection with an L7 rule set, already allowed at L4 */
	TAIL_HTTP_PARSE = 2,
	TAIL_HTTP_DENY = 3,
	TAIL_HTTP_REPLY = 4, /* a server -> client packet of such a connection, already allowed */
	TAIL_HOST_POLICY = 5, /* the node's turn, of ctx->direction; then its stack or ctx->dst_endpoint */
	TAIL_NAT_IN = 6,  /* translate a packet that came in by a device or the overlay */
	TAIL_NAT_OUT = 7, /* translate a packet that leaves by a device */
	TAIL_REFUSE = 8,  /* a dropped packet becomes its own refusal */
	TAIL_DNS_QUERY = 9,  /* a pod's question, under a rule set */
	TAIL_DNS_ANSWER = 10, /* an answer on its way to the pod that asked */
	TAIL_DNS_RECORDS = 11,
	TAIL_DNS_LEARN = 12,
	TAIL_TLS_HELLO = 13, /* a client's packet of a connection with a rule set of server names */
	TAIL_NAMED = 14,     /* the sender's turn, where destinations may be allowed by name */
	TAIL_FORWARD = 15,   /* what the sender's policy has agreed to, on to where it goes */
	TAIL_LEAVE = 20,  /* a pod's packet leaves the node: native routing, egress gateways */
	TAIL_NORTH_SOUTH = 16, /* is it for a Service? */
	TAIL_NAT_FORWARD = 17, /* a translated packet leaves */
	TAIL_DSR_GENEVE = 24, /* a node's packet to the DSR port: what is inside says whose name a pod answers in */
	TAIL_DSR_LEARN = 18,  /* a packet with options: it may say whose name a pod answers in */
	TAIL_DNS_STREAM_ASK = 21,  /* questions and answers by TCP */
	TAIL_DNS_STREAM_HEAR = 22,
	TAIL_TOO_LARGE = 23, /* a packet that does not fit into its way becomes the answer that says so */
	TAIL_DNS_STREAM_REFUSE = 19, /* a forbidden question by TCP is answered, and what the pod sends after that */
	TAIL_COUNT = 25,
};

/* Behind a call on packets' usual way, with its slot: keeps the compiler from having one call for several slots. Of a
 * call whose slot it knows the kernel makes a jump; any other is an indirect branch, which costs 10 ns more. */
#define KNOWN_SLOT(slot) asm volatile("" : : "i"(slot))

BPF_F_TABLE("prog", u32, u32, tailcalls, TAIL_COUNT, 0);
