/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* SCTP's checksum when ports change, without reading the packet.
 *
 * It is a CRC32c over header and payload. CRCs are linear: crc(packet) ^ crc(changed packet) is the CRC of their
 * difference (without initial value and final inversion), and the difference is one word followed by zeros. Appending n
 * zero words multiplies by x^(32n) modulo the polynomial: three multiplications, however long the packet is. No branches on
 * the way, which the verifier would follow one by one, and few steps: it takes them on every path that leads here. */
#pragma once
#include "context.h"
#include "drop_reasons.h"
#include "parse.h"

#define CRC32C 0x82f63b78U /* reflected: bit 31 is x^0 */

enum {
	SCTP_CHECKSUM_OFF = 8,
	SCTP_LENGTH = 12,
	SCTP_LENGTH_MAX = 16384, /* longer ones are offloaded, without a checksum yet */
};

/* a * b modulo the polynomial. */
INLINE u32 crc_multiply(u32 a, u32 b)
{
	u32 product = 0;
	int i;

#pragma nounroll
	for (i = 0; i < 32; i++) {
		product ^= b * (a >> 31);
		b = (b >> 1) ^ (CRC32C * (b & 1));
		a <<= 1;
	}
	return product;
}

/* A power of x that four bits of `n` choose, without branches: bit by bit it is exclusive-or of constants, each of which
 * counts where all bits of its index are set (the index's algebraic normal form). */
#define CRC_POWER(n, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15)                             \
	({                                                                                                             \
		u32 b0 = (n) & 1, b1 = ((n) >> 1) & 1, b2 = ((n) >> 2) & 1, b3 = ((n) >> 3) & 1;                       \
		u32 low = c0 ^ (b0 * c1) ^ (b1 * (c2 ^ (b0 * c3)));                                                    \
		u32 mid = c4 ^ (b0 * c5) ^ (b1 * (c6 ^ (b0 * c7)));                                                    \
		u32 high = c8 ^ (b0 * c9) ^ (b1 * (c10 ^ (b0 * c11)));                                                 \
		u32 top = c12 ^ (b0 * c13) ^ (b1 * (c14 ^ (b0 * c15)));                                                \
		low ^ (b2 * mid) ^ (b3 * (high ^ (b2 * top)));                                                         \
	})

/* How the checksum changes when the first word (as it is in memory) changes by `delta`, `words` (up to 4095) before the
 * end: times x^32 for itself and for each of them. */
INLINE u32 crc_change(u32 delta, u32 words)
{
	delta = crc_multiply(delta, CRC_POWER(words, 0x82f63b78, 0xec54ee24, 0x249e3e93, 0x528401d7,
					      0xfbf03d87, 0x0c05287d, 0x00bfd92b, 0xbef8e353,
					      0x1ed36865, 0x6997e0e7, 0x54ad5c63, 0x898f979e,
					      0x69c1e018, 0xd5e5d269, 0x31bd5ba5, 0xcede0664));
	delta = crc_multiply(delta, CRC_POWER(words >> 4, 0x80000000, 0x382be955, 0x38fdb1e7, 0x9832fbb6,
					      0x08e56f72, 0x20fe22bb, 0xd7c3f2df, 0x0078c0a0,
					      0xf4c360a4, 0xc2718f56, 0xf857a30c, 0xf2d9af8e,
					      0x1f3dbda5, 0x5795db9d, 0x113dd6a0, 0xe07de69c));
	return crc_multiply(delta, CRC_POWER(words >> 8, 0x80000000, 0x64172b16, 0x8d65762a, 0x3612ca33,
					      0xb5d73a62, 0xdf2aef70, 0xf0a9a240, 0x2afbaf14,
					      0xa8461564, 0x827dae2f, 0x225b9890, 0xdd893ed1,
					      0xde7fd399, 0x3fc03713, 0xa6f46516, 0xea797c0e));
}

/* Write the packet's ports (network order) and its checksum. 0 or a drop reason. ctx keeps the old ones. */
INLINE int sctp_ports(struct __sk_buff *skb, const struct pkt_ctx *ctx, u16 sport, u16 dport)
{
	u32 length = ctx->ip_len + L3_OFF - ctx->l4_off, checksum;
	u16 ports[2] = { sport, dport };
	u32 delta = (u16)(ctx->sport ^ sport) | ((u32)(u16)(ctx->dport ^ dport) << 16);

	if (!delta)
		return 0;
	/* The first fragment does not say how long the whole is. */
	if (ctx->flags & CTX_F_FRAGMENT)
		return DROP_IP_FRAGMENTATION_NOT_SUPPORTED;
	if (length < SCTP_LENGTH || (length & 3) ||
	    bpf_skb_load_bytes(skb, ctx->l4_off + SCTP_CHECKSUM_OFF, &checksum, sizeof(checksum)))
		return DROP_INVALID_PACKET_DROPPED;
	/* 0: left to a device or to the receiver's stack, computed when the packet is. */
	if (checksum) {
		if (length > SCTP_LENGTH_MAX)
			return DROP_INVALID_PACKET_DROPPED;
		checksum ^= crc_change(delta, (length - 4) / 4);
		if (bpf_skb_store_bytes(skb, ctx->l4_off + SCTP_CHECKSUM_OFF, &checksum, sizeof(checksum), 0))
			return DROP_ERROR_WRITING_TO_PACKET;
	}
	return bpf_skb_store_bytes(skb, ctx->l4_off, ports, sizeof(ports), 0) ? DROP_ERROR_WRITING_TO_PACKET : 0;
}
