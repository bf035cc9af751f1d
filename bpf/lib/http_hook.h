/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the L3/L4 programs call of the HTTP programs inline. */
#pragma once
#include "context.h"

/* A packet from a server pod to its client, on a connection under an L7 rule set; ctx->tcp_ack is the server's
 * rcv_nxt, ctx->key the server's conntrack key. Called before the packet is rewritten or sent on. */
INLINE void http_reply_hook(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
}
