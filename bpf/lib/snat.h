/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The translation table (services/agent/abi/nat.py) and the ports of the node's addresses.
 *
 * An entry says what both ends of a packet become. Entries come in pairs: the original's, under the tuple that its
 * sender writes, and the answers', under the tuple that the other side answers with; each can be computed from the other.
 * Masquerading, Services from outside and egress gateways all use it, so no two of them ever give away the same port:
 * the answers' entry is inserted first and only if it is not there, which is the reservation. The node's own connections
 * have entries, too, where their port lies in the range that ports are taken from.
 *
 * Ports as in conntrack: the side that pings has the id as its port, the other 0. */
#pragma once
#include "config.h"
#include "conntrack.h"
#include "drop_reasons.h"
#include "nat.h"

/* Where the packet of an entry is met. */
enum nat_way {
	NAT_IN = 0,  /* coming in by a device of the node, or by the overlay */
	NAT_OUT = 1, /* leaving by a device of the node */
};

struct nat_key {
	struct addr saddr;
	struct addr daddr;
	u16 sport; /* network order */
	u16 dport;
	u8 protocol;
	u8 way; /* enum nat_way */
	u16 pad;
};
_Static_assert(sizeof(struct nat_key) == 40, "nat_key");

enum nat_entry_flags {
	NAT_F_ANSWER = 1,    /* of the pair, the one for answers */
	NAT_F_PEER_OUT = 2,  /* the pair's other entry is met on the way out */
	NAT_F_NODE = 4,      /* the node's own connection: nothing changes, the port is taken */
	NAT_F_DSR = 8,       /* the other half is on another node: where the backend is, or where the client came in */
	NAT_F_SEEN_REPLY = 16,
	NAT_F_FIN_ORIGINAL = 32,
	NAT_F_FIN_REPLY = 64,
	NAT_F_RST = 128,
	NAT_F_STATE = NAT_F_SEEN_REPLY | NAT_F_FIN_ORIGINAL | NAT_F_FIN_REPLY | NAT_F_RST,
	NAT_F_BOTH_FINS = NAT_F_FIN_ORIGINAL | NAT_F_FIN_REPLY,
};

struct nat_entry {
	struct addr saddr; /* what the packet's ends become */
	struct addr daddr;
	u16 sport;
	u16 dport;
	u16 flags; /* NAT_F_*, both of a pair have the same NAT_F_STATE */
	u16 slot;       /* originals of Services: the backend's when it was chosen */
	u32 service_id; /* originals and answers of Services from outside */
	u32 pad;
	u64 created_ns; /* coarse monotonic clock */
	u64 expires_ns;
};
_Static_assert(sizeof(struct nat_entry) == 64, "nat_entry");

/* The kernel throws away the least recently used when it is full. */
BPF_F_TABLE("lru_hash", struct nat_key, struct nat_entry, nat_table, 131072, 0);

/* What is being looked up and made: too much for the stack. */
struct nat_work {
	struct nat_key key; /* of the packet at hand */
	struct nat_key peer_key;
	struct nat_entry entry;
	struct nat_entry answer;
};

PERCPU_MAP(nat_scratch, struct nat_work, 1);

/* How often a free port is looked for: at 95 % of the range in use, one of a thousand connections finds none. */
#define NAT_TRIES 128
#define EEXIST_ 17

INLINE struct nat_work *nat_work(void)
{
	u32 zero = 0;

	return nat_scratch.lookup(&zero);
}

INLINE bool nat_is_echo(const struct pkt_ctx *ctx)
{
	return is_icmp(ctx->protocol) && is_icmp_echo(ctx->family, ctx->icmp_type);
}

/* The tuple of a packet that comes in or leaves. */
INLINE void nat_key_set(const struct pkt_ctx *ctx, struct nat_key *key, u8 way)
{
	key->saddr = ctx->saddr;
	key->daddr = ctx->daddr;
	key->sport = ctx->sport;
	key->dport = ctx->dport;
	key->protocol = ctx->protocol;
	key->way = way;
	key->pad = 0;
	if (unlikely(nat_is_echo(ctx))) {
		bool request = is_icmp_request(ctx->family, ctx->icmp_type);

		key->sport = request ? ctx->icmp_id : 0;
		key->dport = request ? 0 : ctx->icmp_id;
	}
}

/* The tuple of the connection that an ICMP error is about, as if the error were one of its packets. */
INLINE void nat_key_set_inner(const struct pkt_ctx *ctx, struct nat_key *key, u8 way)
{
	key->saddr = ctx->inner_daddr;
	key->daddr = ctx->inner_saddr;
	key->sport = ctx->inner_dport;
	key->dport = ctx->inner_sport;
	key->protocol = ctx->inner_protocol;
	key->way = way;
	key->pad = 0;
}

/* Where the other entry of the pair is. */
INLINE void nat_peer_key(const struct nat_key *key, const struct nat_entry *entry, struct nat_key *peer)
{
	peer->saddr = entry->daddr;
	peer->daddr = entry->saddr;
	peer->sport = entry->dport;
	peer->dport = entry->sport;
	peer->protocol = key->protocol;
	peer->way = entry->flags & NAT_F_PEER_OUT ? NAT_OUT : NAT_IN;
	peer->pad = 0;
}

INLINE u64 nat_timeout(u8 protocol, u16 flags)
{
	if (protocol != PROTO_TCP)
		return CT_TIMEOUT_OTHER;
	if ((flags & NAT_F_RST) || (flags & NAT_F_BOTH_FINS) == NAT_F_BOTH_FINS)
		return CT_TIMEOUT_CLOSE;
	/* Only one side's packets are seen: it may still be talked to after its FIN. */
	if ((flags & NAT_F_DSR) && (flags & NAT_F_BOTH_FINS))
		return CT_TIMEOUT_SYN;
	return flags & NAT_F_SEEN_REPLY ? CT_TIMEOUT_TCP : CT_TIMEOUT_SYN;
}

/* Nothing changes. */
INLINE bool nat_is_identity(const struct nat_key *key, const struct nat_entry *entry)
{
	return key->sport == entry->sport && key->dport == entry->dport && addr_equal(&key->saddr, &entry->saddr) &&
	       addr_equal(&key->daddr, &entry->daddr);
}

/* The answers' entry of the pair whose original is (key, entry). */
INLINE void nat_answer_of(const struct nat_key *key, const struct nat_entry *entry, struct nat_entry *answer)
{
	answer->saddr = key->daddr;
	answer->daddr = key->saddr;
	answer->sport = key->dport;
	answer->dport = key->sport;
	answer->flags = (entry->flags & (NAT_F_STATE | NAT_F_NODE)) | NAT_F_ANSWER;
	if (key->way == NAT_OUT)
		answer->flags |= NAT_F_PEER_OUT;
	answer->slot = entry->slot;
	answer->service_id = entry->service_id;
	answer->pad = 0;
	answer->created_ns = entry->created_ns;
	answer->expires_ns = entry->expires_ns;
}

/* What a packet tells about its connection. */
INLINE u16 nat_state(const struct pkt_ctx *ctx, const struct nat_entry *entry)
{
	bool answer = entry->flags & NAT_F_ANSWER;
	u16 flags = (entry->flags & NAT_F_STATE) | (answer ? NAT_F_SEEN_REPLY : 0);

	if (ctx->protocol != PROTO_TCP)
		return flags;
	if (!answer && (ctx->flags & CTX_F_SYN))
		return 0; /* the same ports once more */
	if (!answer && (entry->flags & NAT_F_DSR))
		flags |= NAT_F_SEEN_REPLY; /* elsewhere, or the client would not go on */
	if (ctx->tcp_flags & TCP_FIN)
		flags |= answer ? NAT_F_FIN_REPLY : NAT_F_FIN_ORIGINAL;
	if (ctx->tcp_flags & TCP_RST)
		flags |= NAT_F_RST;
	return flags;
}

/* A packet uses `entry`, which is work->key's. The pair is looked at together only when something changes or a quarter
 * of the time is over. A lost partner comes back; if its place is taken meanwhile, the pair is gone for the next
 * packet. */
INLINE void nat_follow(const struct pkt_ctx *ctx, struct nat_work *work, struct nat_entry *entry)
{
	u16 state = nat_state(ctx, entry);
	u64 timeout = nat_timeout(ctx->protocol, state | (entry->flags & NAT_F_DSR));
	struct nat_entry *peer;

	if (likely(state == (entry->flags & NAT_F_STATE) && entry->expires_ns > ctx->now_ns + timeout / 4 * 3))
		return;
	entry->flags = (entry->flags & ~NAT_F_STATE) | state;
	entry->expires_ns = ctx->now_ns + timeout;
	if (entry->flags & NAT_F_DSR)
		return;
	nat_peer_key(&work->key, entry, &work->peer_key);
	peer = nat_table.lookup(&work->peer_key);
	if (peer) {
		peer->flags = (peer->flags & ~NAT_F_STATE) | state;
		peer->expires_ns = entry->expires_ns;
	} else if (!(entry->flags & NAT_F_ANSWER)) {
		nat_answer_of(&work->key, entry, &work->answer);
		if (nat_table.insert(&work->peer_key, &work->answer))
			nat_table.delete(&work->key);
	}
}

/* Is a port of the node's own one that could be given away? */
INLINE bool nat_port_in_range(const struct datapath_config *cfg, u16 port)
{
	u16 number = bpf_ntohs(port);

	return number >= cfg->nat_port_min && number <= cfg->nat_port_max;
}

/* The n-th port to try. The sender's own comes first: it is free nearly always. Then any: ports in use
 * come in patterns, which steps of whatever length would follow. A small range is searched completely. */
INLINE u16 nat_candidate(const struct datapath_config *cfg, const struct nat_work *work, u32 first, u32 n)
{
	bool echo = is_icmp(work->key.protocol);
	u32 low = echo ? 1 : cfg->nat_port_min, high = echo ? 65535 : cfg->nat_port_max;
	u32 own = bpf_ntohs(work->key.sport), size = high >= low ? high - low + 1 : 1;

	if (n == 0 && own >= low && own <= high)
		return work->key.sport;
	return bpf_htons(low + (size <= NAT_TRIES ? (first & 0xffff) + n : bpf_get_prandom_u32()) % size);
}

/* A left-over of this very connection: its original's entry was thrown away. */
INLINE bool nat_is_ours(const struct nat_work *work, const struct nat_entry *found)
{
	return found && (found->flags & NAT_F_ANSWER) && found->dport == work->key.sport &&
	       found->sport == work->key.dport && addr_equal(&found->daddr, &work->key.saddr) &&
	       addr_equal(&found->saddr, &work->key.daddr);
}

/* Reserve a port of the address work->entry.saddr: the answers' entry. 0 or a drop reason. */
INLINE int nat_reserve(const struct datapath_config *cfg, struct nat_work *work)
{
	u32 first = bpf_get_prandom_u32(), i;
	int error;

	nat_answer_of(&work->key, &work->entry, &work->answer);
	work->entry.sport = 0;
	nat_peer_key(&work->key, &work->entry, &work->peer_key);
#pragma nounroll
	for (i = 0; i < NAT_TRIES; i++) {
		work->peer_key.dport = nat_candidate(cfg, work, first, i);
		error = nat_table.insert(&work->peer_key, &work->answer);
		if (!error)
			break;
		if (error != -EEXIST_)
			return DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
		if (i == 0 && nat_is_ours(work, nat_table.lookup(&work->peer_key))) {
			nat_table.update(&work->peer_key, &work->answer); /* its time starts anew */
			break;
		}
	}
	if (i == NAT_TRIES)
		return DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
	work->entry.sport = work->peer_key.dport;
	return 0;
}

/* Make the pair for work->key: work->entry says what the packet becomes, but for its source port. *made is the
 * original's entry afterwards. 0 or a drop reason. */
INLINE int nat_create(const struct pkt_ctx *ctx, const struct datapath_config *cfg, struct nat_work *work,
		      struct nat_entry **made)
{
	int reason, error;

	work->entry.created_ns = ctx->now_ns;
	work->entry.expires_ns = ctx->now_ns + nat_timeout(ctx->protocol, 0);
	reason = nat_reserve(cfg, work);
	if (reason)
		return reason;
	error = nat_table.insert(&work->key, &work->entry);
	*made = nat_table.lookup(&work->key);
	if (likely(!error && *made))
		return 0;
	/* Another CPU was faster with a packet of the same connection, or there is no room. */
	nat_table.delete(&work->peer_key);
	return error == -EEXIST_ && *made ? 0 : DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
}

/* A new source address for the packet of work->key, destination as it is: masquerading, egress gateways. */
INLINE int nat_create_source(const struct pkt_ctx *ctx, const struct datapath_config *cfg, struct nat_work *work,
			     const struct addr *source, u16 flags, struct nat_entry **made)
{
	work->entry.saddr = *source;
	work->entry.daddr = work->key.daddr;
	work->entry.dport = work->key.dport;
	work->entry.flags = flags;
	work->entry.slot = 0;
	work->entry.service_id = 0;
	work->entry.pad = 0;
	return nat_create(ctx, cfg, work, made);
}

/* Make the pair for work->key, whose source stays what it is: Services whose backend sees the client. The answers' place
 * may be taken by a connection of another frontend, or by one that is over. 0 or a drop reason. */
INLINE int nat_create_plain(const struct pkt_ctx *ctx, struct nat_work *work, struct nat_entry **made)
{
	struct nat_entry *found;

	work->entry.saddr = work->key.saddr;
	work->entry.sport = work->key.sport;
	work->entry.created_ns = ctx->now_ns;
	work->entry.expires_ns = ctx->now_ns + nat_timeout(ctx->protocol, 0);
	nat_answer_of(&work->key, &work->entry, &work->answer);
	nat_peer_key(&work->key, &work->entry, &work->peer_key);
	if (nat_table.insert(&work->peer_key, &work->answer)) {
		found = nat_table.lookup(&work->peer_key);
		if (found && !nat_is_ours(work, found) && ctx->now_ns <= found->expires_ns &&
		    nat_timeout(ctx->protocol, found->flags) != CT_TIMEOUT_CLOSE)
			return DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
		if (nat_table.update(&work->peer_key, &work->answer))
			return DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
	}
	nat_table.update(&work->key, &work->entry);
	*made = nat_table.lookup(&work->key);
	return *made ? 0 : DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
}

/* Make the entry for work->key alone: answers do not come by here. 0 or a drop reason. */
INLINE int nat_create_alone(const struct pkt_ctx *ctx, struct nat_work *work, struct nat_entry **made)
{
	work->entry.saddr = work->key.saddr;
	work->entry.sport = work->key.sport;
	work->entry.created_ns = ctx->now_ns;
	work->entry.expires_ns = ctx->now_ns + nat_timeout(ctx->protocol, 0);
	nat_table.update(&work->key, &work->entry);
	*made = nat_table.lookup(&work->key);
	return *made ? 0 : DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
}

/* Forget a pair; `entry` is work->key's. */
INLINE void nat_forget(struct nat_work *work, const struct nat_entry *entry)
{
	nat_peer_key(&work->key, entry, &work->peer_key);
	if (!(entry->flags & NAT_F_DSR))
		nat_table.delete(&work->peer_key);
	nat_table.delete(&work->key);
}

/* Rewrite the packet as `entry` says; of an ICMP error also the packet inside. 0 or a drop reason. */
INLINE int nat_translate(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct nat_entry *entry)
{
	struct nat nat = {
		.saddr = entry->saddr,
		.daddr = entry->daddr,
		.sport = entry->sport,
		.dport = entry->dport,
	};

	if (unlikely(ctx->flags & CTX_F_ICMP_ERROR))
		return nat_error(skb, ctx, &nat);
	ctx->inner_saddr = ctx->saddr;
	ctx->inner_daddr = ctx->daddr;
	ctx->inner_sport = ctx->sport;
	ctx->inner_dport = ctx->dport;
	if (!addr_equal(&nat.saddr, &ctx->saddr) || nat.sport != nat_port(ctx, true))
		nat.flags |= NAT_SOURCE;
	if (!addr_equal(&nat.daddr, &ctx->daddr) || nat.dport != nat_port(ctx, false))
		nat.flags |= NAT_DESTINATION;
	return nat_apply(skb, ctx, &nat);
}
