/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Bandwidth of pods, where the node's devices queue by departure time (fq): each packet gets the time at which it may
 * leave. Elsewhere the pod's interface itself is shaped (services/agent/endpoints/bandwidth.py) and this is not used.
 * Packets between pods of one node meet no queue of the node and are not paced. */
#pragma once
#include "context.h"
#include "conntrack.h"
#include "drop_reasons.h"
#include "endpoints.h"

HASH_MAP(bandwidth, u32, u64, MAX_ENDPOINTS); /* endpoint -> bytes per second that it may send */
ARRAY_MAP(pacing, u64, MAX_ENDPOINTS);        /* endpoint -> when its next packet may leave, monotonic ns */

/* Later than this a packet is of no use to anybody. */
#define PACING_HORIZON (2 * SECOND)

/* 0 or a drop reason. Two CPUs that race for one departure send a packet too early, no more. */
INLINE int pace(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	u32 id = ctx->src_endpoint;
	u64 *rate = bandwidth.lookup(&id), *next = pacing.lookup(&id);
	u64 now, departure;

	if (!rate || !next || !*rate)
		return 0;
	now = precise_now(ctx);
	departure = *next > now ? *next : now;
	if (departure - now > PACING_HORIZON)
		return DROP_REACHED_EDT_RATE_LIMITING_DROP_HORIZON;
	*next = departure + (u64)skb->len * SECOND / *rate;
	if (departure > now)
		bpf_skb_set_tstamp(skb, departure, BPF_SKB_TSTAMP_DELIVERY_MONO);
	return 0;
}
