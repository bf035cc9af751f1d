/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Observe-only mode: a node whose network is somebody else's. A pod's turn as always (lib/verdict.h), without its
 * verdict: nothing is dropped, changed or sent elsewhere, and whoever hooks the interface after us finds the packet as
 * it was.
 *
 * from_watched (ingress of a pod's host-side interface): what the pod sends
 * to_watched   (egress of it):                           what it gets
 *
 * Pods are known by their addresses, not by interfaces: how another network ties the two is its own affair.
 */
#include "lib/ipcache.h"
#include "lib/parse.h"
#include "lib/verdict.h"

#define TC_ACT_UNSPEC (-1) /* as TCX_NEXT: the next program decides */

INLINE u32 identity_of(const struct addr *address, const struct endpoint_info *ep)
{
	struct remote_endpoint_info *info;

	if (ep)
		return ep->identity;
	info = ipcache_lookup(address);
	return info ? info->identity : world_identity(address);
}

INLINE void watch(struct __sk_buff *skb, bool sends)
{
	struct pkt_ctx *ctx = pkt_context();
	struct endpoint_info *ep, *peer;

	if (!ctx)
		return;
	ctx->direction = sends ? DIR_EGRESS : DIR_INGRESS;
	if (parse_packet(skb, ctx))
		return; /* the link's own chatter, or nothing that could be named */
	ep = endpoint_by_addr(sends ? &ctx->saddr : &ctx->daddr);
	if (!ep)
		return;
	peer = endpoint_by_addr(sends ? &ctx->daddr : &ctx->saddr);
	ctx->src_endpoint = sends ? ep->id : peer ? peer->id : 0;
	ctx->dst_endpoint = sends ? (peer ? peer->id : 0) : ep->id;
	ctx->src_identity = sends ? ep->identity : identity_of(&ctx->saddr, peer);
	ctx->dst_identity = sends ? identity_of(&ctx->daddr, peer) : ep->identity;
	ct_key_set(ctx, sends);
	police(ctx, ct.lookup(&ctx->key), ep, ctx->direction, sends ? ctx->dst_identity : ctx->src_identity,
	       peer ? peer->id : 0);
}

int from_watched(struct __sk_buff *skb)
{
	watch(skb, true);
	return TC_ACT_UNSPEC;
}

int to_watched(struct __sk_buff *skb)
{
	watch(skb, false);
	return TC_ACT_UNSPEC;
}
