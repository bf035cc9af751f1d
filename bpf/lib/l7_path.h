/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where packets of connections under L7 rules go from the sender's turn. */
#pragma once
#include "context.h"
#include "conntrack.h"
#include "endpoints.h"
#include "l7.h"
#include "tailcall.h"
#include "tls.h"

/* A pod's packet on a connection under L7 rules. Returns 0 to go on, or a drop reason; packets that have to be looked
 * into come back by TAIL_FORWARD. */
INLINE int l7_from_endpoint(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct endpoint_info *src, u32 dst_endpoint)
{
	u32 kind = l7_kind(ctx->l7_ruleset);
	bool asks = ctx->ct_state == CT_NEW || ctx->ct_state == CT_ESTABLISHED;

	ctx->dst_endpoint = dst_endpoint;
	if (kind == L7_KIND_HTTP && ctx->protocol == PROTO_TCP && (asks || ctx->ct_state == CT_REPLY)) {
		if (src->flags & ENDPOINT_F_AUDIT)
			ctx->flags |= CTX_F_AUDIT;
		tailcalls.call(skb, asks ? TAIL_HTTP_ENTRY : TAIL_HTTP_REPLY);
		return DROP_MISSED_TAIL_CALL;
	}
	if (kind == L7_KIND_TLS && ctx->ct_state == CT_REPLY)
		tls_heard(ctx);
	if (kind == L7_KIND_HTTP || !asks)
		return 0;
	tailcalls.call(skb, kind == L7_KIND_DNS ? TAIL_DNS_QUERY : TAIL_TLS_HELLO);
	return DROP_MISSED_TAIL_CALL;
}
