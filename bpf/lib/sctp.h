/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* SCTP's checksum when ports change, without reading the packet.
 *
 * It is a CRC32c over header and payload. CRCs are linear: crc(packet) ^ crc(changed packet) is the CRC of their
 * difference (without initial value and final inversion), and the difference is one word followed by zeros. Appending n
 * zero words multiplies by x^(32n) modulo the polynomial: a dozen steps by squares, however long the packet is. No
 * branches on the way, which the verifier would follow one by one. */
#pragma once
#include "context.h"
#include "drop_reasons.h"
#include "parse.h"

#define CRC32C 0x82f63b78U /* reflected: bit 31 is x^0 */
#define CRC32C_ONE 0x80000000U

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
		product ^= b & -(a >> 31);
		b = (b >> 1) ^ (CRC32C & -(b & 1));
		a <<= 1;
	}
	return product;
}

/* Append 2^bit zero words if `words` has that bit; `power` is x^(32 * 2^bit). */
INLINE u32 crc_append(u32 crc, u32 words, u32 bit, u32 power)
{
	return crc_multiply(crc, CRC32C_ONE ^ ((power ^ CRC32C_ONE) & -((words >> bit) & 1)));
}

/* How the checksum changes when the first word (as it is in memory) changes by `delta`, `words` before the end. */
INLINE u32 crc_change(u32 delta, u32 words)
{
	u32 crc = delta;
	int i;

#pragma nounroll
	for (i = 0; i < 32; i++)
		crc = (crc >> 1) ^ (CRC32C & -(crc & 1));
	crc = crc_append(crc, words, 0, 0x82f63b78);
	crc = crc_append(crc, words, 1, 0x6ea2d55c);
	crc = crc_append(crc, words, 2, 0x18b8ea18);
	crc = crc_append(crc, words, 3, 0x510ac59a);
	crc = crc_append(crc, words, 4, 0xb82be955);
	crc = crc_append(crc, words, 5, 0xb8fdb1e7);
	crc = crc_append(crc, words, 6, 0x88e56f72);
	crc = crc_append(crc, words, 7, 0x74c360a4);
	crc = crc_append(crc, words, 8, 0xe4172b16);
	crc = crc_append(crc, words, 9, 0x0d65762a);
	crc = crc_append(crc, words, 10, 0x35d73a62);
	crc = crc_append(crc, words, 11, 0x28461564);
	return crc;
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
