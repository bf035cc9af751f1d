/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Words that every header uses. Fixed-size structs with explicit padding only: user space mirrors them. */
#pragma once
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#define INLINE static __always_inline
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Table declarations: sizes are what a node gets unless its configuration says otherwise (the loader creates the
 * maps, these numbers are its defaults). LPM tries and big hashes are not preallocated. */
#define ARRAY_MAP(name, value, entries) BPF_F_TABLE("array", u32, value, name, entries, 0)
#define PERCPU_MAP(name, value, entries) BPF_F_TABLE("percpu_array", u32, value, name, entries, 0)
#define HASH_MAP(name, key, value, entries) BPF_F_TABLE("hash", key, value, name, entries, 1 /* NO_PREALLOC */)
#define LPM_MAP(name, key, value, entries) BPF_F_TABLE("lpm_trie", key, value, name, entries, 1 /* NO_PREALLOC */)

/* 16 bytes in network order; IPv4 travels as ::ffff:a.b.c.d, so that dual stack is not a second code path. */
struct addr {
	u32 w[4];
};
_Static_assert(sizeof(struct addr) == 16, "addr");

enum {
	ETH_HLEN_ = 14,
	/* Ethernet is all we see: the network header of every packet starts here. */
	L3_OFF = ETH_HLEN_,
};

enum protocol {
	PROTO_HOPOPTS = 0,
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_ICMPV6 = 58,
	PROTO_NONE = 59,
	PROTO_DSTOPTS = 60,
	PROTO_SCTP = 132,
};

/* Policy direction as seen by the endpoint (services.model.verdict.Direction). */
enum direction {
	DIR_INGRESS = 1,
	DIR_EGRESS = 2,
};

/* Reserved identities (services.model.identity.Reserved). */
enum identity {
	IDENTITY_ANY = 0,
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2,
	IDENTITY_REMOTE_NODE = 6,
	IDENTITY_KUBE_APISERVER = 7,
	IDENTITY_WORLD_IPV4 = 9,
	IDENTITY_WORLD_IPV6 = 10,
	IDENTITY_CLUSTER_MIN = 256,
	IDENTITY_CLUSTER_MAX = (1 << 24) - 1,
};

#define V4_MAPPED_WORD bpf_htonl(0xffff)

INLINE void addr_set_v4(struct addr *a, u32 ip)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = V4_MAPPED_WORD;
	a->w[3] = ip;
}

INLINE bool addr_equal(const struct addr *a, const struct addr *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

INLINE bool addr_is_zero(const struct addr *a)
{
	return (a->w[0] | a->w[1] | a->w[2] | a->w[3]) == 0;
}

INLINE bool addr_is_v4(const struct addr *a)
{
	return (a->w[0] | a->w[1]) == 0 && a->w[2] == V4_MAPPED_WORD;
}
