/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services for the outside, as tail calls behind nat_in: a packet of a connection that nobody knows yet.
 *
 * north_south: is it for a Service? A backend is chosen and remembered as a pair of translations
 *                local backend:      destination only, so that it sees the client; then the pod's ingress stage
 *                remote, SNAT:       the node's address and a port of it as the source; answers come back here
 *                remote, DSR:        destination only; the backend's node is told and answers itself. Clients inside of
 *                                    the cluster have SNAT: no node may speak with another's address
 */
#include "lib/dsr.h"
#include "lib/dsr_geneve.h"
#include "lib/hostfw.h"
#include "lib/lb.h"
#include "lib/masquerade.h"
#include "lib/nat_paths.h"
#include "lib/refuse.h"
#include "lib/snat.h"
#include "lib/tailcall.h"

/* The pair for a new connection to backend `b`. *made is the original's entry. 0 or a drop reason. */
INLINE int remember_backend(struct __sk_buff *skb, struct pkt_ctx *ctx, struct nat_work *work,
			    const struct service_info *service, const struct backend *b, struct nat_entry **made)
{
	struct datapath_config *cfg = datapath_config();
	struct netdev_info *node = netdev_by_ifindex(NETDEV_NODE);
	struct addr *own = node ? netdev_address(node, ctx->family) : NULL;

	work->entry.daddr = b->address;
	work->entry.dport = b->port;
	work->entry.service_id = service->service_id;
	work->entry.pad = 0;
	work->entry.flags = NAT_F_PEER_OUT;
	if ((b->flags & BACKEND_F_LOCAL) || (own && addr_equal(own, &b->address)))
		return nat_create_plain(ctx, work, made);
	if ((service->flags & SERVICE_F_DSR) && !is_inside(&ctx->saddr) && dsr_possible(skb, ctx, &b->address)) {
		work->entry.flags = NAT_F_DSR;
		return nat_create_alone(ctx, work, made);
	}
	work->entry.flags = 0;
	if (!own || !cfg)
		return DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
	work->entry.saddr = *own;
	return nat_create(ctx, cfg, work, made);
}

/* A Service's packet that may open a connection. Returns a verdict for `finish`. */
INLINE int open_service(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct service_key *frontend,
			const struct service_info *service)
{
	struct lb_client client = { .address = ctx->saddr, .port = ctx->sport, .now_ns = ctx->now_ns };
	struct nat_work *work = nat_work();
	struct nat_entry *entry = NULL;
	struct backend *b;
	u32 slot = 0;
	int reason;

	ctx->service_id = service->service_id;
	if (!lb_source_allowed(service, &ctx->saddr))
		return -DROP_DENIED_BY_LB_SRC_RANGE_CHECK;
	b = lb_select(frontend, service, &client, &slot);
	if (!b || !work) {
		if (service->flags & SERVICE_F_REFUSE)
			ctx->flags |= CTX_F_REFUSE;
		return -DROP_SERVICE_BACKEND_NOT_FOUND;
	}
	nat_key_set(ctx, &work->key, NAT_IN);
	work->entry.slot = slot;
	reason = remember_backend(skb, ctx, work, service, b, &entry);
	if (reason)
		return -reason;
	return entry ? nat_go_on(skb, ctx, entry) : -DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
}

INLINE int handle_north_south(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct service_key frontend = {
		.address = ctx->daddr, .port = ctx->dport, .protocol = ctx->protocol, .scope = SCOPE_EXTERNAL
	};
	struct service_info *service;

	if (ctx->protocol != PROTO_TCP && ctx->protocol != PROTO_UDP && ctx->protocol != PROTO_SCTP)
		return NAT_LEAVE;
	service = services.lookup(&frontend);
	if (service)
		return open_service(skb, ctx, &frontend, service);
	/* A Service's own address: its other ports are nobody's. */
	return service_find(&ctx->daddr, 0, 0, SCOPE_EXTERNAL) ? -DROP_SERVICE_BACKEND_NOT_FOUND : NAT_LEAVE;
}

int north_south(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	int verdict;

	if (!ctx)
		return TC_ACT_SHOT;
	verdict = handle_north_south(skb, ctx);
	return finish_or_refuse(skb, ctx, verdict == NAT_LEAVE ? nat_leave(skb, ctx) : verdict);
}
