/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Room in the connection table: who may come in, and who has to leave for it (services/agent/abi/ct_room.py).
 *
 * A connection is *settled* (CT_F_SETTLED) from the end of its handshake to its end. Settled ones are never pushed out;
 * an endpoint may have so many of them and no more. All others, half-open or over, stand in a queue of fixed length:
 * each insertion takes the next place and removes whoever had it a lap ago, unless that one has settled. So a flood
 * of connections that nobody completes turns the queue and nothing else, also while no agent collects.
 *
 * Between two pods of the node nothing loses the last packet of a connection. Once that has come, the entry only waits
 * for CT_LINGER others to end, in case packets crossed, and then leaves its place and its memory to a new connection,
 * both still warm: a stream of short connections costs no memory that the processor has to fetch from afar.
 *
 * One queue per CPU: places need no locks. The table has room for all queues and as many settled connections. */
#pragma once
#include "config.h"
#include "conntrack.h"
#include "drop_reasons.h"
#include "endpoints.h"

struct ct_place {
	struct ct_key key;
	u32 number; /* of the entry that stands here; 0: nobody */
	u32 pad;
};
_Static_assert(sizeof(struct ct_place) == 48, "ct_place");

/* A cache line per endpoint. Only the kernel writes here. */
struct ct_usage {
	u32 settled; /* connections that settled minus those whose end was seen; what the agent collects is not in it */
	u32 evicted; /* pushed out of the queue before they settled */
	u32 refused; /* packets that would have opened a connection too many */
	u32 pad[13];
};
_Static_assert(sizeof(struct ct_usage) == 64, "ct_usage");

/* The real sizes come from the agent's configuration. */
PERCPU_MAP(ct_queue, struct ct_place, 1024);
ARRAY_MAP(ct_usage, struct ct_usage, MAX_ENDPOINTS);
/* `settled` at which an endpoint gets no new connections, written by the agent: its quota and what was collected. 0:
 * no quota. */
ARRAY_MAP(ct_limit, u32, MAX_ENDPOINTS);

/* The last connections that ended within the node. */
PERCPU_MAP(ct_retired, struct ct_place, 128);

#define CT_RETIRED_MASK 127
#define CT_LINGER 64

#define CT_QUEUE_MIN_MASK 1023
#define CT_PLACES_TRIED 16
#define CT_SETTLE_OTHER (2 * SECOND)

INLINE u32 ct_queue_mask(void)
{
	struct datapath_config *cfg = datapath_config();

	return (cfg ? cfg->ct_queue_mask : 0) | CT_QUEUE_MIN_MASK;
}

INLINE struct ct_usage *ct_usage_of(u32 endpoint_id)
{
	return ct_usage.lookup(&endpoint_id);
}

/* May the endpoint open one more? 0 or a drop reason. Id 0 (no pod) has no quota. */
INLINE int ct_check_quota(u32 endpoint_id)
{
	struct ct_usage *usage = ct_usage.lookup(&endpoint_id);
	u32 *limit = ct_limit.lookup(&endpoint_id);

	if (!usage || !limit || !*limit || likely((s32)(*limit - usage->settled) > 0))
		return 0;
	__sync_fetch_and_add(&usage->refused, 1);
	return DROP_CT_QUOTA_EXCEEDED;
}

/* The connection is over, or about to be replaced. */
INLINE void ct_unsettle(struct ct_entry *entry)
{
	struct ct_usage *usage;

	if (!(entry->flags & CT_F_SETTLED))
		return;
	entry->flags &= ~CT_F_SETTLED;
	usage = ct_usage_of(entry->endpoint_id);
	if (usage)
		__sync_fetch_and_add(&usage->settled, -1);
}

INLINE void ct_settle(struct ct_entry *entry)
{
	struct ct_usage *usage = ct_usage_of(entry->endpoint_id);

	entry->flags |= CT_F_SETTLED;
	if (usage)
		__sync_fetch_and_add(&usage->settled, 1);
}

/* Whom the place was given to, unless that one has settled or stands elsewhere by now: then NULL. */
INLINE struct ct_entry *ct_standing(const struct ct_place *place)
{
	struct ct_entry *entry;

	if (!place->number)
		return NULL;
	entry = ct.lookup((struct ct_key *)&place->key);
	if (!entry || entry->queue_number != place->number || entry->queue_cpu != bpf_get_smp_processor_id() ||
	    (entry->flags & CT_F_SETTLED))
		return NULL;
	return entry;
}

/* Remove who stands there. */
INLINE bool ct_evict(struct ct_place *place)
{
	struct ct_entry *entry = ct_standing(place);
	struct ct_usage *usage;

	if (!entry)
		return false;
	if (!(entry->flags & CT_F_CLOSING)) {
		usage = ct_usage_of(entry->endpoint_id);
		if (usage)
			__sync_fetch_and_add(&usage->evicted, 1);
	}
	ct.delete(&place->key);
	return true;
}

/* The place of a connection that ended within the node long enough ago, by the number of others or by its place. It
 * leaves the table now. The place's number, or 0. */
INLINE u32 ct_reuse(struct pkt_ctx *ctx)
{
	u32 index = ctx->ct_reused & CT_RETIRED_MASK, waiting = ctx->ct_retired - ctx->ct_reused;
	struct ct_place *last = ct_retired.lookup(&index);

	if (!last || !waiting || (waiting < CT_LINGER && ctx->ct_queued - last->number <= ct_queue_mask()))
		return 0;
	ctx->ct_reused += 1;
	if (ct_standing(last))
		ct.delete(&last->key);
	return last->number;
}

/* A place in this CPU's queue for the connection ctx->key. */
INLINE void ct_enqueue(struct pkt_ctx *ctx, struct ct_entry *entry)
{
	u32 mask = ct_queue_mask(), number = ct_reuse(ctx), index;
	struct ct_place *place;

	/* So recent a place is nearly as good as the next one. */
	if (!number || ctx->ct_queued - number > mask / 4)
		number = ++ctx->ct_queued;
	index = number & mask;
	place = ct_queue.lookup(&index);
	entry->queue_number = number;
	entry->queue_cpu = bpf_get_smp_processor_id();
	if (!place)
		return;
	ct_evict(place);
	place->key = ctx->key;
	place->number = number;
}

/* The table is full, of settled connections then: one of the places that are next has to be enough. */
INLINE void ct_make_room(struct pkt_ctx *ctx)
{
	u32 index, i, mask = ct_queue_mask();
	struct ct_place *place;

#pragma nounroll
	for (i = 0; i < CT_PLACES_TRIED; i++) {
		ctx->ct_queued += 1;
		index = ctx->ct_queued & mask;
		place = ct_queue.lookup(&index);
		if (place && ct_evict(place))
			return;
	}
}

/* Put a new connection into the table under ctx->key and into the queue. `entry` is not the table's copy. 0 or a drop
 * reason. */
INLINE int ct_insert(struct pkt_ctx *ctx, struct ct_entry *entry)
{
	int i, error = 0;

	ct_enqueue(ctx, entry);
#pragma nounroll
	for (i = 0; i < 2; i++) {
		error = ct.update(&ctx->key, entry);
		if (likely(!error))
			return 0;
		if (i == 0)
			ct_make_room(ctx);
	}
	return DROP_CT_MAP_INSERTION_FAILED;
}

/* A settled connection is over: it stands in the queue again, if its place there has gone meanwhile. */
INLINE void ct_leave(struct pkt_ctx *ctx, struct ct_entry *entry)
{
	ct_unsettle(entry);
	if (entry->queue_cpu != bpf_get_smp_processor_id() || ctx->ct_queued - entry->queue_number > ct_queue_mask())
		ct_enqueue(ctx, entry);
}

/* The entry under ctx->key for a packet that opens a connection, which as a rule has none. All that this connection will
 * have to fetch from afar is asked for here, at once: a processor waits for several misses together unless a branch in
 * between goes another way than it expected. Hence look-ups of their own, which always find nothing. `local`: the
 * receiver, if it is a pod of this node, has an entry of its own. */
INLINE struct ct_entry *ct_lookup_opening(struct pkt_ctx *ctx, const struct endpoint_info *local)
{
	struct ct_entry *entry;
	struct ct_place *next;
	u32 index;

	if (ctx->ct_retired - ctx->ct_reused >= CT_LINGER) {
		index = ctx->ct_reused & CT_RETIRED_MASK;
		next = ct_retired.lookup(&index);
	} else {
		index = (ctx->ct_queued + 1) & ct_queue_mask();
		next = ct_queue.lookup(&index);
	}
	if (next && next->number)
		ct.lookup(&next->key);
	if (local) {
		struct ct_key mirror = {
			.local = ctx->key.remote,
			.remote = ctx->key.local,
			.local_port = ctx->key.remote_port,
			.remote_port = ctx->key.local_port,
			.protocol = ctx->key.protocol,
		};

		ct.lookup(&mirror);
	}
	entry = ct.lookup(&ctx->key);
	asm volatile("" ::: "memory"); /* keeps the compiler from merging it with the other look-up */
	return entry;
}

/* A connection (the table's entry, under ctx->key) has said its last word, and its peer is a pod of this node. */
INLINE void ct_retire(struct pkt_ctx *ctx, struct ct_entry *entry)
{
	u32 index = entry->queue_number & ct_queue_mask(), next = ctx->ct_retired & CT_RETIRED_MASK;
	struct ct_place *place = ct_queue.lookup(&index), *last = ct_retired.lookup(&next);

	if (!place || !last || place->number != entry->queue_number || entry->queue_cpu != bpf_get_smp_processor_id() ||
	    ctx->ct_retired - ctx->ct_reused > CT_RETIRED_MASK)
		return;
	ctx->ct_retired += 1;
	last->key = ctx->key;
	last->number = place->number;
	place->number = 0;
}

/* After a packet was counted: has the connection come to stay, or come to its end? The table's entry, under ctx->key.
 * Half-open is who has not had an answer and gone on: a TCP handshake is complete with its third packet, others have
 * to talk for a while. */
INLINE void ct_follow_room(struct pkt_ctx *ctx, struct ct_entry *entry, bool original)
{
	u16 state = entry->flags & (CT_F_SETTLED | CT_F_CLOSING | CT_F_FIN_ORIGINAL | CT_F_FIN_REPLY);

	if (likely(state == CT_F_SETTLED))
		return;
	if ((entry->flags & CT_F_CLOSING) || ct_both_fins(entry)) {
		if (state & CT_F_SETTLED)
			ct_leave(ctx, entry);
		return;
	}
	if ((state & CT_F_SETTLED) || !original || !(entry->flags & CT_F_SEEN_REPLY))
		return;
	if (ctx->protocol != PROTO_TCP ? ctx->now_ns - entry->created_ns > CT_SETTLE_OTHER && ctx->now_ns > entry->created_ns :
					 ctx->tcp_flags & TCP_ACK)
		ct_settle(entry);
}
