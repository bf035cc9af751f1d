/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Bytes of a TCP stream that are kept until there are enough of them to be read. */
#pragma once
#include "types.h"

/* An index whose bound the verifier shall see, whatever the compiler knows. `mask` is a constant 2^n - 1. */
#define BOUNDED(index, mask)                                                \
	({                                                                  \
		u64 bounded = (index);                                      \
		asm volatile("%0 &= %1" : "+r"(bounded) : "i"(mask));       \
		bounded;                                                    \
	})

enum { STREAM_PIECE = 64 }; /* what is kept may be written so many bytes beyond its end */

/* Keep *count bytes of the packet, from `from` on, at `at` of `bytes`, which has `mask` + 1 + STREAM_PIECE. What is counted
 * is in memory, so that the verifier looks at one piece. */
INLINE bool stream_keep(struct __sk_buff *skb, u32 from, u8 *bytes, u32 at, const u32 *count, const u32 mask)
{
	u64 length;
	u32 done;

#pragma clang loop unroll(disable)
	for (done = 0; done < mask + 1; done += STREAM_PIECE) {
		asm volatile("" ::: "memory");
		if (done >= *count)
			break;
		length = *count - done < STREAM_PIECE ? *count - done : STREAM_PIECE;
		length -= 1;
		asm volatile("%0 &= %1" : "+r"(length) : "i"(STREAM_PIECE - 1));
		if (bpf_skb_load_bytes(skb, from + done, &bytes[BOUNDED(at + done, mask)], length + 1))
			return false;
	}
	return true;
}
