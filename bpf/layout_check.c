/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every struct that user space knows, as the value of a throw-away table: BCC then describes its fields and offsets,
 * and tests/datapath/test_layout.py compares them with services/agent/abi. Never loaded. */
#include "lib/maps.h"
#include "lib/dns.h"
#include "lib/process.h"


ARRAY_MAP(lay_event_lane, struct event_lane, 1);
ARRAY_MAP(lay_flow_event, struct flow_event, 1);
ARRAY_MAP(lay_http_event, struct http_event, 1);
ARRAY_MAP(lay_name_event, struct name_event, 1);
ARRAY_MAP(lay_fqdn_slot, struct fqdn_slot, 1);
ARRAY_MAP(lay_metric, struct metric, 1);
ARRAY_MAP(lay_ct_key, struct ct_key, 1);
ARRAY_MAP(lay_policy_key, struct policy_key, 1);
ARRAY_MAP(lay_ipcache_key, struct ipcache_key, 1);
ARRAY_MAP(lay_sock_key, struct sock_key, 1);
ARRAY_MAP(lay_service_key, struct service_key, 1);
ARRAY_MAP(lay_backend_key, struct backend_key, 1);
ARRAY_MAP(lay_lb_client, struct lb_client, 1);
ARRAY_MAP(lay_egress_key, struct egress_key, 1);
ARRAY_MAP(lay_nat_key, struct nat_key, 1);
