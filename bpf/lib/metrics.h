/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets and bytes per direction and outcome, per CPU (services/agent/abi/metrics.py). */
#pragma once
#include "context.h"
#include "drop_reasons.h"

struct metric {
	u64 packets;
	u64 bytes;
};
_Static_assert(sizeof(struct metric) == 16, "metric");

/* Index: drop reason (0 = forwarded) * 4 + direction, so that what every packet counts is next to each other. Direction
 * 0: no endpoint was known. */
PERCPU_MAP(metrics, struct metric, 256 * 4);

INLINE void count_packet(u32 direction, u32 reason, u32 bytes)
{
	u32 index = (reason & 255) * 4 + (direction & 3);
	struct metric *m = metrics.lookup(&index);

	if (m) {
		m->packets += 1;
		m->bytes += bytes;
	}
}
