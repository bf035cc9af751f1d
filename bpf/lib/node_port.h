/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Node ports at addresses that no entry of `services` has: loopback ones for the node's own processes, and every address
 * of every node for all clients. Each port is there once more with the address zero (services/agent/calc/services). */
#pragma once
#include "config.h"
#include "ipcache.h"
#include "lb.h"

/* This very network namespace; no address at all means the same to the kernel. */
INLINE bool is_own_loopback(const struct addr *a)
{
	if (addr_is_v4(a))
		return !a->w[3] || (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !(a->w[0] | a->w[1] | a->w[2]) && (!a->w[3] || a->w[3] == bpf_htonl(1));
}

INLINE bool is_node(const struct addr *address)
{
	struct remote_endpoint_info *info = ipcache_lookup(address);

	/* An API server outside of the cluster has an identity of another kind. */
	return info && (info->identity == IDENTITY_HOST || info->identity == IDENTITY_REMOTE_NODE ||
			info->identity == IDENTITY_KUBE_APISERVER);
}

/* The Service that a client in the network namespace `netns` means by an address and port, or NULL. */
INLINE struct service_info *sock_service(const struct service_key *asked, u64 netns)
{
	bool loopback = is_own_loopback(&asked->address);
	struct service_key port = *asked;
	struct datapath_config *cfg;
	struct service_info *service;

	if (loopback) {
		cfg = datapath_config();
		if (!cfg || !cfg->netns || cfg->netns != netns)
			return NULL; /* a pod's own loopback */
	} else {
		service = services.lookup(&port);
		if (likely(service))
			return service;
	}
	if (!addr_is_v4(&asked->address))
		port.address = (struct addr){};
	else
		addr_set_v4(&port.address, 0);
	service = services.lookup(&port);
	if (likely(!service) || loopback)
		return service;
	/* Pods' host ports are at their own node only. */
	return !(service->flags & SERVICE_F_HOST_PORT) && is_node(&asked->address) ? service : NULL;
}
