/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments: only the first has ports; they are remembered for the others. */
#pragma once
#include "context.h"
#include "drop_reasons.h"

/* Ports of fragmented datagrams, from the first fragment to the later ones. */
struct fragment_key {
	struct addr saddr;
	struct addr daddr;
	u32 id;
	u8 protocol;
	u8 pad[3];
};
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");

struct fragment_ports {
	u16 sport;
	u16 dport;
};

BPF_F_TABLE("lru_hash", struct fragment_key, struct fragment_ports, fragments, 4096, 0);

/* Remember the first fragment's ports, or recall them for a later one. */
INLINE int track_fragment(struct pkt_ctx *ctx, u32 id)
{
	struct fragment_key key = { .saddr = ctx->saddr, .daddr = ctx->daddr, .id = id, .protocol = ctx->protocol };
	struct fragment_ports ports = { .sport = ctx->sport, .dport = ctx->dport }, *known;

	if (!(ctx->flags & CTX_F_NO_L4)) {
		fragments.update(&key, &ports);
		return 0;
	}
	known = fragments.lookup(&key);
	if (!known)
		return DROP_IP_FRAGMENTATION_NOT_SUPPORTED;
	ctx->sport = known->sport;
	ctx->dport = known->dport;
	return 0;
}
