/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which Service was a packet's socket connected to? Packets of connections that were balanced at the socket carry the
 * backend's address from the start; flows name the Service all the same. */
#pragma once
#include "config.h"
#include "context.h"
#include "sock.h"

/* For a packet that opens a connection. Without a port in ctx->service_port nothing is translated back. */
INLINE void name_service(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct datapath_config *cfg = datapath_config();
	struct sock_entry *entry;
	u64 cookie;

	if (!cfg || !(cfg->flags & CONFIG_F_SOCKET_LB) || (ctx->protocol != PROTO_TCP && ctx->protocol != PROTO_UDP))
		return;
	cookie = bpf_get_socket_cookie(skb); /* 0: the packet comes from no socket of this machine */
	if (!cookie)
		return;
	entry = sock_find(cookie, &ctx->daddr, ctx->dport, ctx->protocol);
	if (!entry)
		return;
	ctx->service_id = entry->service_id;
	ctx->service_address = entry->address;
	ctx->service_port = 0;
}
