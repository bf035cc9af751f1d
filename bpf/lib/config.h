/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What differs between nodes, written by the agent (services/agent/abi/config.py). An all-zero config (nothing
 * written yet) works for local pods: no overlay, everything unknown is reserved:world. */
#pragma once
#include "types.h"

/* What this node does; each bit belongs to one concern. */
enum config_flags {
	CONFIG_F_MASQUERADE = 1,  /* pods' packets to the outside leave with the node's address */
	CONFIG_F_NORTH_SOUTH = 2, /* Services are reached from outside through this node */
	CONFIG_F_SOCKET_LB = 256, /* sockets may have been connected to Services: flows name them */
	CONFIG_F_NATIVE_ROUTING = 4, /* pods' packets travel between nodes as they are */
	CONFIG_F_HTTP_VISIBLE = 512, /* requests to some ports are told without any policy (lib/http_tables.h) */
	CONFIG_F_EGRESS_GATEWAY = 8, /* some pods leave the cluster by chosen nodes (lib/egress_gw.h) */
	CONFIG_F_PACING = 16, /* the node's devices queue by departure time (lib/bandwidth.h) */
	/* Whose packets the hooks on the node's devices have to look at; the rest passes untouched. */
	CONFIG_F_FROM_NETDEV = CONFIG_F_MASQUERADE | CONFIG_F_NORTH_SOUTH | CONFIG_F_NATIVE_ROUTING |
			       CONFIG_F_EGRESS_GATEWAY,
	CONFIG_F_TO_NETDEV = CONFIG_F_MASQUERADE | CONFIG_F_NORTH_SOUTH | CONFIG_F_EGRESS_GATEWAY,
};

enum { EVERY_PACKET_NS = 1 }; /* as update_interval_ns: an UPDATE event for every packet of a known connection */

struct datapath_config {
	u64 update_interval_ns; /* between UPDATE events of a live connection; 0 = none, EVERY_PACKET_NS */
	u32 overlay_ifindex;    /* 0 = no overlay */
	u32 world_ipv4;         /* identity of unknown IPv4 addresses; 0 = reserved:world */
	u32 world_ipv6;
	u16 tunnel_port; /* network order: pods may not speak it to nodes */
	u16 flags;       /* CONFIG_F_* */
	u32 path_mtu;    /* the largest packet of a pod that fits into the way to other nodes; 0 = not known */
	u32 ct_queue_mask; /* places per CPU in the queue of connections that have not settled, minus 1 */
	struct addr tunnel_address; /* this node's end of the overlay; zero: whatever the routing table says */
	struct addr hairpin_ipv4; /* source of a pod's packets to itself through its own Service */
	struct addr hairpin_ipv6;
	u16 nat_port_min; /* host order: the ports that connections get which share the node's address */
	u16 nat_port_max;
	u16 dsr_port; /* network order: DSR's Geneve (lib/dsr_geneve.h); 0 = addresses travel as IP options */
	u16 pad;
	u64 netns; /* cookie of the node's own network namespace: whose sockets are its processes'; 0 = not known */
};
_Static_assert(sizeof(struct datapath_config) == 96, "datapath_config");

/* Is there more to do with a pod's packet than to send it by the overlay, or if that does not take it, by the stack? */
INLINE bool leaves_specially(const struct datapath_config *cfg, bool overlay)
{
	if (!cfg)
		return false;
	return cfg->flags & (overlay ? CONFIG_F_PACING :
				       CONFIG_F_PACING | CONFIG_F_NATIVE_ROUTING | CONFIG_F_EGRESS_GATEWAY);
}

ARRAY_MAP(config, struct datapath_config, 1);

INLINE struct datapath_config *datapath_config(void)
{
	u32 zero = 0;

	return config.lookup(&zero);
}
