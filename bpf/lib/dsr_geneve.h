/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Direct server return in Geneve (RFC 8926), for networks that drop packets with IP options or extensions: what opens a
 * connection goes to the backend's node inside of UDP, with an option that says what the client addressed. Made and
 * taken apart here, on the node's devices, so that no kernel needs a Geneve device; what comes later goes as it is.
 *
 *     outer IP (node -> node) | UDP | Geneve | option: address and port | Ethernet | the client's packet to the backend
 *
 * UDP's checksum is zero: over IPv4 as ever, over IPv6 by RFC 6935 and 6936, as the packet inside has its own and no
 * UDP of the kernel's looks at it. The kernel merges no datagrams without one, so each arrives alone. ECN is not carried
 * over in either direction (RFC 6040, 4.1: compatibility mode). */
#pragma once
#include "dsr.h"
#include "forward.h"
#include "ipcache.h"
#include "l3_header.h"
#include "masquerade.h"
#include "native.h"
#include "netdev.h"
#include "overlay.h"
#include "too_large.h"

enum {
	GENEVE_ETHERNET = 0x6558, /* Trans Ether Bridging */
	GENEVE_VERSION = 0xc0,    /* of the first byte; the rest is the options' length */
	GENEVE_CONTROL = 0x80,    /* of the second byte: not a packet of anybody's */
	GENEVE_CRITICAL = 0x40,   /* of the second byte: some option is critical */
	GENEVE_OPTION_CRITICAL = 0x80, /* of an option's type: who does not know it drops the packet */
	/* The field's: IANA's registry has the class, its best-known implementation the type and the layout. */
	DSR_GENEVE_CLASS = 0x014b,
	DSR_GENEVE_TYPE = GENEVE_OPTION_CRITICAL | 1,
	GENEVE_OPTIONS_READ = 8, /* a packet with more of them is not one of ours */
	UDP_LENGTH = 8,
};

struct geneve_option {
	u16 class;
	u8 type;
	u8 words; /* of 4 bytes, behind these 4; 3 bits are reserved */
};

struct geneve_header {
	u8 version_words; /* of options */
	u8 flags;
	u16 protocol;
	u32 vni; /* and a reserved byte */
};

/* Between the outer IP header and the Service's address, and behind it. */
struct dsr_geneve_head {
	struct l4_header udp;
	struct geneve_header geneve;
	struct geneve_option option;
};
_Static_assert(sizeof(struct dsr_geneve_head) == 20, "dsr_geneve_head");

struct dsr_geneve_tail {
	u16 port;
	u16 pad;
	struct eth_header frame;
};
_Static_assert(sizeof(struct dsr_geneve_tail) == 18, "dsr_geneve_tail");

/* The way to the backend's node. */
struct dsr_way {
	struct way route;
	struct addr from;
	struct addr to;
	u32 length; /* of all that is put around the packet, from the outer IP header on */
	u8 outer;   /* family */
};

INLINE u32 ip_length(u8 family)
{
	return family == 4 ? IPV4_BASE : IPV6_BASE;
}

/* Connections spread over paths and the receiver's queues by it. */
INLINE u32 dsr_flow_hash(const struct pkt_ctx *ctx)
{
	const struct addr *s = &ctx->saddr, *d = &ctx->daddr;
	u32 mixed = s->w[0] ^ s->w[1] ^ s->w[2] ^ s->w[3] ^ d->w[0] ^ d->w[1] ^ d->w[2] ^ d->w[3];

	return (mixed ^ ((u32)ctx->sport << 16 | ctx->dport) ^ ctx->protocol) * 0x9e3779b1;
}

INLINE u16 dsr_source_port(const struct pkt_ctx *ctx)
{
	return bpf_htons(0xc000 | dsr_flow_hash(ctx) >> 18);
}

/* Can the packet go to the node of the pod `backend`, and how? Offloaded packets and later fragments cannot: what is to
 * be around each of their parts would be around the whole. The length counts with the header, along the route:
 * way->route.mtu is what would fit where it is too large. */
INLINE bool dsr_find_way(struct __sk_buff *skb, const struct pkt_ctx *ctx, const struct datapath_config *cfg,
			 const struct addr *backend, struct dsr_way *way)
{
	struct remote_endpoint_info *pod = ipcache_lookup(backend);
	struct netdev_info *node = netdev_by_ifindex(NETDEV_NODE);
	struct bpf_fib_lookup lookup = {}, *fib = &lookup;
	struct addr *own;
	long result;

	if (!pod || !node || !is_cluster_pod(pod->identity) || addr_is_zero(&pod->tunnel_endpoint) || skb->gso_size ||
	    (ctx->flags & CTX_F_NO_L4))
		return false;
	way->outer = addr_is_v4(&pod->tunnel_endpoint) ? 4 : 6;
	own = netdev_address(node, way->outer);
	if (!own)
		return false;
	way->from = *own;
	way->to = pod->tunnel_endpoint;
	way->length = ip_length(way->outer) + sizeof(struct dsr_geneve_head) + wire_length(ctx->family) +
		      sizeof(struct dsr_geneve_tail);
	fib->ifindex = skb->ifindex;
	fib->l4_protocol = PROTO_UDP;
	fib->sport = dsr_source_port(ctx);
	fib->dport = cfg->dsr_port;
	fib->tot_len = ctx->ip_len + way->length;
	if (way->outer == 4) {
		fib->family = FAMILY_IPV4;
		fib->ipv4_src = way->from.w[3];
		fib->ipv4_dst = way->to.w[3];
	} else {
		fib->family = FAMILY_IPV6;
		__builtin_memcpy(fib->ipv6_src, &way->from, sizeof(way->from));
		__builtin_memcpy(fib->ipv6_dst, &way->to, sizeof(way->to));
	}
	result = bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
	if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED && fib->tot_len > way->length)
		way->route.mtu = fib->tot_len - way->length;
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return false;
	follow_route(fib, &way->route);
	return true;
}

/* There is room for the option, or the sender can be told to leave some (nat_forward). */
INLINE bool dsr_opens_by_option(struct __sk_buff *skb, const struct pkt_ctx *ctx)
{
	if (likely(dsr_fits(skb, ctx)))
		return true;
	return dsr_carries(skb, ctx) && is_whole(skb, ctx) && (ctx->family == 4 || ctx->ip_len > IPV6_LEAST_MTU);
}

/* Will the backend's node learn of a connection that this packet opens? */
INLINE bool dsr_possible(struct __sk_buff *skb, const struct pkt_ctx *ctx, const struct addr *backend)
{
	struct datapath_config *cfg = datapath_config();
	struct dsr_way way = {};

	if (cfg && cfg->dsr_port)
		return dsr_find_way(skb, ctx, cfg, backend, &way);
	return dsr_opens_by_option(skb, ctx);
}

/* Network headers of the outer packet, `length` bytes behind Ethernet. 0 or a drop reason. */
INLINE int dsr_store_outer(struct __sk_buff *skb, const struct pkt_ctx *ctx, const struct dsr_way *way, u32 length)
{
	struct ipv6_header ip6 = {};
	struct ipv4_header ip4 = {};

	if (way->outer == 4) {
		ip4.version_ihl = 0x45;
		ip4.total_length = bpf_htons(length);
		ip4.fragment = bpf_htons(0x4000); /* do not fragment: its length was looked at */
		ip4.ttl = OWN_TTL;
		ip4.protocol = PROTO_UDP;
		ip4.saddr = way->from.w[3];
		ip4.daddr = way->to.w[3];
		ip4.checksum = checksum_fold(bpf_csum_diff(NULL, 0, (void *)&ip4, sizeof(ip4), 0));
		return bpf_skb_store_bytes(skb, L3_OFF, &ip4, sizeof(ip4), 0) ? nat_failed() : 0;
	}
	ip6.version_class_flow = bpf_htonl(0x60000000 | dsr_flow_hash(ctx) >> 12); /* RFC 6438 */
	ip6.payload_length = bpf_htons(length - IPV6_BASE);
	ip6.next_header = PROTO_UDP;
	ip6.hop_limit = OWN_TTL;
	ip6.saddr = way->from;
	ip6.daddr = way->to;
	return bpf_skb_store_bytes(skb, L3_OFF, &ip6, sizeof(ip6), 0) ? nat_failed() : 0;
}

/* From UDP to the inner frame's header, which is the one that the packet came with. 0 or a drop reason. */
INLINE int dsr_store_geneve(struct __sk_buff *skb, const struct pkt_ctx *ctx, const struct dsr_way *way, u16 port,
			    struct dsr_geneve_tail *tail)
{
	u32 at = L3_OFF + ip_length(way->outer), address = wire_length(ctx->family);
	struct dsr_geneve_head head = {
		.udp.sport = dsr_source_port(ctx),
		.udp.dport = port,
		.udp.length = bpf_htons(ctx->ip_len + way->length - ip_length(way->outer)),
		.geneve.version_words = (sizeof(struct geneve_option) + address + 4) / 4,
		.geneve.flags = GENEVE_CRITICAL,
		.geneve.protocol = bpf_htons(GENEVE_ETHERNET),
		.geneve.vni = bpf_htonl(wire_identity(ctx->src_identity) << 8),
		.option.class = bpf_htons(DSR_GENEVE_CLASS),
		.option.type = DSR_GENEVE_TYPE,
		.option.words = (address + 4) / 4,
	};
	int error = bpf_skb_store_bytes(skb, at, &head, sizeof(head), 0);

	at += sizeof(head);
	if (ctx->family == 4)
		error |= bpf_skb_store_bytes(skb, at, &ctx->service_address.w[3], sizeof(u32), 0);
	else
		error |= bpf_skb_store_bytes(skb, at, &ctx->service_address, sizeof(struct addr), 0);
	tail->port = ctx->service_port;
	return error || bpf_skb_store_bytes(skb, at + address, tail, sizeof(*tail), 0) ? nat_failed() : 0;
}

/* The packet goes into Geneve. 0 or a drop reason. */
INLINE int dsr_wrap(struct __sk_buff *skb, const struct pkt_ctx *ctx, const struct datapath_config *cfg,
		    const struct dsr_way *way)
{
	u64 flags = BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
		    BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct eth_header)) |
		    (way->outer == 4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6);
	u16 protocol = bpf_htons(way->outer == 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6);
	struct dsr_geneve_tail tail = {};
	int reason;

	if (bpf_skb_load_bytes(skb, 0, &tail.frame, sizeof(tail.frame)) ||
	    bpf_skb_adjust_room(skb, way->length, BPF_ADJ_ROOM_MAC, flags) ||
	    bpf_skb_store_bytes(skb, sizeof(struct eth_header) - sizeof(protocol), &protocol, sizeof(protocol), 0))
		return nat_failed();
	reason = dsr_store_outer(skb, ctx, way, ctx->ip_len + way->length);
	return reason ? reason : dsr_store_geneve(skb, ctx, way, cfg->dsr_port, &tail);
}
