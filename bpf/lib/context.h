/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What one packet carries from tail call to tail call: named fields in a per-CPU scratch entry instead of magic
 * skb->cb slots. Safe because every hook runs with bottom halves off and none of them transmits synchronously
 * (redirects happen after the program, clones go through the backlog). */
#pragma once
#include "types.h"

/* Conntrack key, as seen from the endpoint: local is the pod, remote its peer, whoever opened the connection and
 * whichever way the packet goes. ICMP echo: the pinging side has the id as its port, the other side 0. */
struct ct_key {
	struct addr local;
	struct addr remote;
	u16 local_port;  /* network order */
	u16 remote_port; /* network order */
	u8 protocol;
	u8 scope; /* enum ct_scope */
	u16 pad;
};
_Static_assert(sizeof(struct ct_key) == 40, "ct_key");

/* How the packet reaches the endpoint once its ingress policy agreed. */
enum delivery {
	DELIVER_PEER = 1, /* rewrite MACs, TTL - 1, bpf_redirect_peer into the pod */
	DELIVER_PASS = 2, /* already on its way out of the host's veth: TC_ACT_OK */
};

enum ctx_flags {
	CTX_F_FRAGMENT = 1,       /* any fragment; a later one has no L4 header (see CTX_F_NO_L4) */
	CTX_F_NO_L4 = 2,          /* a later fragment: ports are remembered from the first */
	CTX_F_ICMP_ERROR = 4,     /* inner_* describe the packet that the error is about */
	CTX_F_HTTP = 8,           /* the connection is or was under an L7 rule set: HTTP follows it */
	CTX_F_SYN = 16,           /* TCP SYN without ACK, SCTP INIT */
	CTX_F_REVNAT = 32,        /* a reply: service_address and service_port are what the client knows */
	CTX_F_AUDIT = 64,         /* to HTTP: the endpoint whose turn it is is only audited */
	CTX_F_NORTH_SOUTH = 1024, /* of a Service's connection from outside: answers go by way of nat_out */
	CTX_F_DSR = 2048,         /* to nat_forward: tell the backend's node what the client addressed */
	CTX_F_TRACK = 4096,       /* to host_policy: then to nat_out, which takes note of the node's port */
	CTX_F_REFUSE = 128,       /* dropped, and the sender is told at once (refuse.h) */
	CTX_F_CUT = 8192,         /* to too_large: the packet may be cut, and the stack is to do it */
	CTX_F_LEAVING = 16384,    /* to too_large: the stack had sent the packet already */
	CTX_F_TO_SERVICE = 32768, /* a pod's: service_address is what it had written for the destination */
	CTX_F_OPEN = 1024,        /* to names: the connection is open, and may outlive the names of its peer */
};

struct pkt_ctx {
	struct ct_key key; /* of the endpoint whose turn it is */

	/* The packet as it is now (after Service translation). Ports in network order; ICMP: type and code. */
	struct addr saddr;
	struct addr daddr;
	u16 sport;
	u16 dport;
	u8 family; /* 4 or 6 */
	u8 protocol;
	u8 icmp_type;
	u8 icmp_code;
	u16 l4_off;      /* from the start of the Ethernet header */
	u16 payload_off; /* likewise; L7 payload for TCP and UDP */
	u32 payload_len; /* L7 bytes, without Ethernet padding */
	u32 ip_len;      /* network header and all behind it */
	u32 tcp_seq;     /* host order */
	u32 tcp_ack;     /* host order */
	u8 tcp_flags;
	u8 ttl;
	u16 icmp_id; /* network order, echo only */
	u32 flags;   /* CTX_F_* */

	/* ICMP errors: the packet inside. Of other packets that were translated at the node's devices: what they were
	 * before (forward.c). */
	struct addr inner_saddr;
	struct addr inner_daddr;
	u16 inner_sport;
	u16 inner_dport;
	u16 inner_protocol;
	u16 inner_l3_off;
	u16 inner_l4_off;
	u16 inner_pad2;

	/* Who talks to whom. Endpoint ids are 0 for everything that is not a pod of this node. */
	u32 src_identity;
	u32 dst_identity;
	u32 src_endpoint;
	u32 dst_endpoint;
	u32 dst_ifindex; /* host side of the destination pod's veth */
	u8 delivery;     /* enum delivery */
	u8 direction;    /* enum direction: whose policy is being asked */
	u8 ct_state;     /* enum ct_status */
	u8 match_type;

	/* What was decided. */
	u32 rule_id;
	u32 l7_ruleset;
	u32 service_id;
	u32 policy_revision;
	struct addr service_address; /* with service_id: what the client addressed */
	u16 service_port;
	u16 pad;
	/* Policy about a destination that has names (fqdn.h). */
	struct {
		u32 rank; /* enum policy_rank */
		u32 rule_id;
		u32 l7_ruleset;
		u32 match_type;
	} named;
	u64 now_ns;     /* coarse monotonic clock (a few ms) */
	u64 precise_ns; /* the exact one, read at most once per packet; 0: not yet */
	u64 events; /* emitted by this CPU: every so many wake the reader */
	u32 ct_queued; /* connections that this CPU has put into its queue (lib/ct_room.h) */
	u32 ct_retired; /* connections that this CPU has seen end within the node, and ... */
	u32 ct_reused;  /* ... of these, whose places have gone to others */
	u32 fitting; /* the packet is too large, this much would fit; 0: not known, or it is refused for good */
};

PERCPU_MAP(scratch, struct pkt_ctx, 1);

INLINE struct pkt_ctx *pkt_context(void)
{
	u32 zero = 0;

	return scratch.lookup(&zero);
}

/* Might the packet be the first of a connection? */
INLINE bool may_open(const struct pkt_ctx *ctx)
{
	return (ctx->protocol != PROTO_TCP && ctx->protocol != PROTO_SCTP) || (ctx->flags & CTX_F_SYN);
}

/* For times that end up in records. */
INLINE u64 precise_now(struct pkt_ctx *ctx)
{
	if (!ctx->precise_ns)
		ctx->precise_ns = bpf_ktime_get_ns();
	return ctx->precise_ns;
}
