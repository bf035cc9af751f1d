/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Direct server return at the backend's node, as tail calls: whoever is told what a client addressed answers in its name.
 *
 * dsr_learn:  a packet with an IP option or extension, which may say it (lib/dsr.h)
 * dsr_geneve: a packet to the DSR port from another node, with another packet inside (lib/dsr_geneve.h)
 */
#include "lib/dsr.h"
#include "lib/dsr_geneve_in.h"
#include "lib/lb.h"
#include "lib/masquerade.h"
#include "lib/nat_paths.h"
#include "lib/snat.h"
#include "lib/tailcall.h"

/* Does a node answer at this address, or at an address that all nodes serve? */
INLINE struct service_info *dsr_service(const struct pkt_ctx *ctx)
{
	struct netdev_info *node = netdev_by_ifindex(NETDEV_NODE);
	struct addr *own = node ? netdev_address(node, ctx->family) : NULL;
	struct remote_endpoint_info *peer = ipcache_lookup(&ctx->service_address);
	struct service_info *service =
		service_find(&ctx->service_address, ctx->service_port, ctx->protocol, SCOPE_EXTERNAL);

	if (service || !peer || !own)
		return service;
	if (peer->identity != IDENTITY_REMOTE_NODE && peer->identity != IDENTITY_KUBE_APISERVER)
		return NULL;
	/* A node port of another node: it is one of this node, too. */
	return service_find(own, ctx->service_port, ctx->protocol, SCOPE_EXTERNAL);
}

/* Remember how the pod's answers leave. Nobody but a Service's address can be answered with. */
INLINE int dsr_remember(struct pkt_ctx *ctx, struct nat_work *work)
{
	struct service_info *service = dsr_service(ctx);

	if (!service)
		return DROP_SERVICE_BACKEND_NOT_FOUND;
	ctx->service_id = service->service_id;
	work->key.saddr = ctx->daddr;
	work->key.daddr = ctx->saddr;
	work->key.sport = ctx->dport;
	work->key.dport = ctx->sport;
	work->key.protocol = ctx->protocol;
	work->key.way = NAT_OUT;
	work->key.pad = 0;
	work->entry.saddr = ctx->service_address;
	work->entry.daddr = ctx->saddr;
	work->entry.sport = ctx->service_port;
	work->entry.dport = ctx->sport;
	work->entry.flags = NAT_F_ANSWER | NAT_F_DSR;
	work->entry.slot = 0;
	work->entry.service_id = service->service_id;
	work->entry.pad = 0;
	work->entry.created_ns = ctx->now_ns;
	work->entry.expires_ns = ctx->now_ns + nat_timeout(ctx->protocol, 0);
	return nat_table.update(&work->key, &work->entry) ? DROP_NO_MAPPING_FOR_NAT_MASQUERADE : 0;
}

INLINE int handle_dsr_learn(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct endpoint_info *dst = endpoint_by_addr(&ctx->daddr);
	struct nat_work *work = nat_work();
	int reason;

	if (!dst || !work || !dsr_read(skb, ctx)) {
		/* Other options, which are no concern of ours. */
		tailcalls.call(skb, ctx->dst_endpoint ? TAIL_INGRESS : TAIL_NORTH_SOUTH);
		return -DROP_MISSED_TAIL_CALL;
	}
	reason = dsr_remember(ctx, work);
	if (!reason)
		reason = dsr_remove(skb, ctx);
	if (reason)
		return -reason;
	ctx->flags |= CTX_F_NORTH_SOUTH;
	ctx->src_identity = arrived_from(skb, ctx);
	return nat_deliver(skb, ctx);
}

int dsr_learn(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	int verdict;

	if (!ctx)
		return TC_ACT_SHOT;
	verdict = handle_dsr_learn(skb, ctx);
	return finish(skb, ctx, verdict == NAT_LEAVE ? nat_leave(skb, ctx) : verdict);
}

INLINE int handle_dsr_geneve(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	int reason = dsr_unwrap(skb, ctx);
	struct nat_work *work = nat_work();

	if (reason)
		return -reason;
	if (!work || !endpoint_by_addr(&ctx->daddr))
		return -DROP_STALE_OR_UNROUTABLE_IP;
	reason = dsr_remember(ctx, work);
	if (reason)
		return -reason;
	ctx->flags |= CTX_F_NORTH_SOUTH;
	return nat_deliver(skb, ctx);
}

int dsr_geneve(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	int verdict;

	if (!ctx)
		return TC_ACT_SHOT;
	verdict = handle_dsr_geneve(skb, ctx);
	return finish(skb, ctx, verdict == NAT_LEAVE ? -DROP_STALE_OR_UNROUTABLE_IP : verdict);
}
