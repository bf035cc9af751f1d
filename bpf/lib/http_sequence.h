/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TCP's part: is this the next byte of the stream that the server will read?
 *
 *   seq == expected          inspect
 *   ahead, inside a body     skip over the hole: those bytes are opaque whoever fills them (dropping here costs uploads
 *                            five sixths of their speed)
 *   ahead otherwise          drop; TCP sends it again, in order
 *   behind, inside a body    pass; into a hole of an earlier one, too
 *   behind, acknowledged     pass: the server ignores it, whatever it says
 *   behind, reaching ahead   inspect what is new, if what is old is acknowledged or body
 *   behind, unacknowledged   nobody can know whether the server has the first copy (it may have dropped it: bad
 *                            checksum, old timestamp, full accept queue; it may be about to acknowledge it). It passes
 *                            only if it says the same as what passed before: it is read again from the same state
 *                            on, has the same methods, targets and hosts (told by a hash that starts with a random
 *                            number) and ends in the same state. Then it does not matter which copy counts, and there
 *                            is no decoy.
 *
 * A repetition can be compared from the snapshot on (a packet before which everything was acknowledged) to the end of
 * the packet there or to the end of all. Anything else is dropped; after eight in a row both sides are reset, after two
 * where the server seems to have lost a super-packet that now comes in pieces. */
#pragma once
#include "http_parse.h"

#define HTTP_STRIKES 8
#define HTTP_STRIKES_IN_PIECES 4 /* count of one */

/* What to do with a packet, beside the drop reasons (> 100). */
enum http_admission {
	HTTP_INSPECT = 0, /* from w->pos on */
	HTTP_PASS = 1,
	HTTP_PASS_CHANGED = 2, /* publish the flow first */
	HTTP_STRIKE = 3,       /* publish, then drop */
};

INLINE void http_snapshot(struct http_work *w)
{
	w->flow.snap = w->flow.now;
	w->flow.snap_hash = w->flow.hash;
	w->flow.snapped = 1;
	w->flow.marked = 0;
}

INLINE bool http_in_data(const struct http_parse *now)
{
	return now->phase == HTTP_PHASE_BODY || now->phase == HTTP_PHASE_CHUNK_DATA;
}

/* Remember a hole before passing over it: what fills it may come when the next chunk or request is long begun. False:
 * too many are open, the packet has to wait. */
INLINE bool http_note_hole(struct http_work *w, u32 start, u32 end)
{
	int i;

#pragma unroll
	for (i = 0; i < HTTP_HOLES; i++) {
		if ((s32)(w->flow.holes[i].end - w->acked) > 0)
			continue;
		w->flow.holes[i].start = start;
		w->flow.holes[i].end = end;
		return true;
	}
	return false;
}

INLINE bool http_in_hole(const struct http_work *w, u32 seq, u32 end)
{
	bool inside = false;
	int i;

	/* A hole counts until the server has acknowledged it: sequence numbers come round. */
#pragma unroll
	for (i = 0; i < HTTP_HOLES; i++)
		inside |= (s32)(w->flow.holes[i].end - w->acked) > 0 && (s32)(seq - w->flow.holes[i].start) >= 0 &&
			  (s32)(w->flow.holes[i].end - end) >= 0;
	return inside;
}

/* Go over `n` bytes of body. */
INLINE void http_skip(struct http_work *w, u32 at, u32 n)
{
	struct http_parse *now = &w->flow.now;

	/* The range keeps its start while it is one that sequence numbers can express. */
	if (at - w->flow.body_start > HTTP_RANGE_MAX)
		w->flow.body_start = at;
	w->flow.body_end = at + (now->remain > HTTP_RANGE_MAX ? HTTP_RANGE_MAX : (u32)now->remain);
	now->remain -= n;
	if (now->remain)
		return;
	if (now->phase == HTTP_PHASE_BODY) {
		http_next_message(now);
		return;
	}
	now->phase = HTTP_PHASE_CHUNK_END;
	now->digits = 0;
}

INLINE int http_admit_old(struct http_work *w, u32 seq, u32 length)
{
	struct http_flow *flow = &w->flow;
	u32 end = seq + length;
	bool acked_all;

	if ((s32)(end - w->acked) <= 0)
		return HTTP_PASS;
	if ((s32)(end - flow->now.seq) <= 0 && http_ranged(flow, seq) && http_ranged(flow, end))
		return HTTP_PASS;
	if (http_in_hole(w, seq, end))
		return HTTP_PASS;
	acked_all = (s32)(flow->now.seq - w->acked) <= 0;
	if ((s32)(end - flow->now.seq) > 0 && (acked_all || (http_ranged(flow, seq) && http_ranged(flow, flow->now.seq)))) {
		w->pos = flow->now.seq - seq;
		return HTTP_INSPECT;
	}
	if (flow->snapped && seq == flow->snap.seq) {
		w->comparing = 1;
		w->held = flow->now;
		w->held_hash = flow->hash;
		w->held_digest = http_digest(flow);
		w->held_start = flow->body_start;
		w->held_end = flow->body_end;
		if ((s32)(end - flow->now.seq) > 0)
			w->limit = flow->now.seq - seq;
		flow->now = flow->snap;
		flow->hash = flow->snap_hash;
		return HTTP_INSPECT;
	}
	flow->strikes += 1;
	return HTTP_STRIKE;
}

/* A packet with payload on a connection that is followed. */
INLINE int http_admit(struct http_work *w, u32 seq, u32 length)
{
	struct http_parse *now = &w->flow.now;
	s32 ahead = seq - now->seq;

	if (ahead < 0)
		return http_admit_old(w, seq, length);
	if (ahead > 0) {
		if (!http_in_data(now) || (u64)ahead > now->remain || !http_note_hole(w, now->seq, seq))
			return DROP_HTTP_OUT_OF_ORDER;
		http_skip(w, now->seq, ahead);
		now->seq = seq;
	}
	if (http_in_data(now) && length <= now->remain) {
		http_skip(w, seq, length);
		now->seq = seq + length;
		w->flow.strikes = 0;
		return HTTP_PASS_CHANGED;
	}
	/* Sequence numbers come round: an old body must not excuse new bytes. */
	if ((s32)(seq - w->flow.body_end) > (s32)HTTP_RANGE_MAX)
		http_range(w, seq, 0);
	if ((s32)(w->acked - seq) >= 0)
		http_snapshot(w);
	return HTTP_INSPECT;
}

/* The bytes that were to be compared are through. True: they are the same, and `now` is again what it was. */
INLINE bool http_compared(struct http_work *w, u32 end)
{
	struct http_flow *flow = &w->flow;
	bool same = false;

	if (end == w->held.seq) {
		same = http_digest(flow) == w->held_digest;
	} else if (flow->marked && end == flow->mark_seq && http_digest(flow) == flow->mark_digest) {
		/* What comes again next begins here. */
		same = true;
		flow->snap = flow->now;
		flow->snap.seq = end;
		flow->snap_hash = flow->hash;
		flow->marked = 0;
	}
	flow->now = w->held;
	flow->hash = w->held_hash;
	flow->body_start = w->held_start;
	flow->body_end = w->held_end;
	w->comparing = 0;
	return same;
}
