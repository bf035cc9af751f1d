/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* toFQDNs: the sender's turn, where the destination is in the outside world and names may allow it.
 *
 * named (tail call of from_endpoint): what the names of the address say -> the turn, with that -> on its way */
#define NAMED_TURN 1
#include "lib/fqdn.h"
#include "lib/l7_path.h"
#include "lib/refined.h"
#include "lib/tailcall.h"
#include "lib/verdict.h"

/* What the destination's identity alone gets. */
INLINE void named_base(struct pkt_ctx *ctx, const struct endpoint_info *src, u32 peer, u16 port)
{
	struct policy_entry *entry;
	u8 match_type = 0;

	if (src->flags & ENDPOINT_F_REFINE_EGRESS)
		peer = refine(peer, &ctx->key.remote);
	entry = policy_lookup(src->policy_id, DIR_EGRESS, peer, ctx->protocol, port, &match_type);
	ctx->named.rank = entry ? policy_rank(entry) : RANK_NONE;
	ctx->named.rule_id = entry ? entry->rule_id : 0;
	ctx->named.l7_ruleset = entry ? entry->l7_ruleset : 0;
	ctx->named.match_type = match_type;
}

INLINE int handle_named(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct endpoint_info *src = endpoint_by_id(ctx->src_endpoint);
	struct ct_entry *entry = ct.lookup(&ctx->key);
	bool icmp = ctx->protocol == PROTO_ICMP || ctx->protocol == PROTO_ICMPV6;
	u16 port = icmp ? ctx->sport : ctx->dport;
	int reason;

	if (!src)
		return -DROP_EP_NOT_READY;
	if (entry && !(entry->flags & CT_F_DENIED) && !ct_is_over(entry, ctx))
		ctx->flags |= CTX_F_OPEN;
	named_base(ctx, src, ctx->dst_identity, port);
	fqdn_policy(ctx, src->policy_id, port);
	reason = police(ctx, ct.lookup(&ctx->key), src, DIR_EGRESS, ctx->dst_identity, 0);
	if (!reason && (ctx->flags & CTX_F_HTTP))
		reason = l7_from_endpoint(skb, ctx, src, 0);
	if (reason)
		return -reason;
	ctx->dst_endpoint = 0;
	tailcalls.call(skb, TAIL_FORWARD);
	return -DROP_MISSED_TAIL_CALL;
}

int named(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	if (!ctx)
		return TC_ACT_SHOT;
	return finish(skb, ctx, handle_named(skb, ctx));
}
