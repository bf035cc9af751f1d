/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services for the outside, where packets come in (native XDP, before the kernel has made anything of them).
 *
 * What most packets need is done here: a known connection to a backend of another node, its answers, and the first packet
 * of one with SNAT. The rest goes on untouched to from_netdev, which knows the same table and can do everything: local
 * backends, options, fragments, ICMP, refusals, neighbours that are not known yet. Nothing is dropped here. */
#include "lib/xdp_packet.h"
#include "lib/xdp_forward.h"

/* The entry of a known connection, if it is one that this program can follow. */
INLINE struct nat_entry *xdp_known(const struct pkt_ctx *ctx, struct nat_work *work)
{
	struct nat_entry *entry;

	nat_key_set(ctx, &work->key, NAT_IN);
	entry = nat_table.lookup(&work->key);
	if (!entry || !entry->service_id || ctx->now_ns > entry->expires_ns)
		return NULL;
	if (entry->flags & NAT_F_ANSWER)
		return entry;
	/* A local backend; or a packet that may open a connection, whose backend is to be looked at or told. */
	if ((entry->flags & NAT_F_PEER_OUT) || (ctx->protocol == PROTO_TCP && (ctx->flags & CTX_F_SYN)))
		return NULL;
	return (entry->flags & NAT_F_DSR) && ctx->protocol == PROTO_UDP ? NULL : entry;
}

/* A new connection to a Service whose backend is elsewhere and sees the node. */
INLINE struct nat_entry *xdp_open(const struct pkt_ctx *ctx, struct nat_work *work, const struct datapath_config *cfg)
{
	struct service_key frontend = {
		.address = ctx->daddr, .port = ctx->dport, .protocol = ctx->protocol, .scope = SCOPE_EXTERNAL
	};
	struct lb_client client = { .address = ctx->saddr, .port = ctx->sport, .now_ns = ctx->now_ns };
	struct service_info *service = services.lookup(&frontend);
	struct netdev_info *node = netdev_by_ifindex(NETDEV_NODE);
	struct nat_entry *made = NULL;
	struct addr *own;
	struct backend *b;
	u32 slot = 0;

	if (!service || !node || (service->flags & SERVICE_F_DSR) || !lb_source_allowed(service, &ctx->saddr))
		return NULL;
	/* One that is there already is over or stale: from_netdev clears it away. */
	if (nat_table.lookup(&work->key))
		return NULL;
	own = netdev_address(node, ctx->family);
	b = lb_select(&frontend, service, &client, &slot);
	if (!b || !own || (b->flags & BACKEND_F_LOCAL) || addr_equal(own, &b->address))
		return NULL;
	work->entry.saddr = *own;
	work->entry.daddr = b->address;
	work->entry.dport = b->port;
	work->entry.flags = 0;
	work->entry.slot = slot;
	work->entry.service_id = service->service_id;
	work->entry.pad = 0;
	return nat_create(ctx, cfg, work, &made) ? NULL : made;
}

int xdp_netdev(struct xdp_md *xdp)
{
	struct datapath_config *cfg = datapath_config();
	struct pkt_ctx *ctx = pkt_context();
	struct nat_work *work = nat_work();
	struct nat_entry *entry;
	int verdict;

	if (!cfg || !(cfg->flags & CONFIG_F_NORTH_SOUTH) || !ctx || !work || !xdp_parse(xdp, ctx))
		return XDP_PASS;
	entry = xdp_known(ctx, work);
	if (likely(entry))
		nat_follow(ctx, work, entry);
	else
		entry = xdp_open(ctx, work, cfg);
	if (!entry)
		return XDP_PASS;
	return xdp_forward(xdp, ctx, cfg, entry);
}
