/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Headers as they are on the wire, all in network order, and the numbers in them. */
#pragma once
#include "types.h"

struct eth_header {
	u8 dst[6];
	u8 src[6];
	u16 protocol;
};

struct ipv4_header {
	u8 version_ihl;
	u8 tos;
	u16 total_length;
	u16 id;
	u16 fragment;
	u8 ttl;
	u8 protocol;
	u16 checksum;
	u32 saddr;
	u32 daddr;
};

struct ipv6_header {
	u32 version_class_flow;
	u16 payload_length;
	u8 next_header;
	u8 hop_limit;
	struct addr saddr;
	struct addr daddr;
};

struct ipv6_extension {
	u8 next_header;
	u8 length; /* in 8 bytes, beyond the first 8 */
	u16 fragment_offset;
	u32 fragment_id;
};

struct tcp_header {
	u16 sport;
	u16 dport;
	u32 seq;
	u32 ack;
	u8 data_offset;
	u8 flags;
	u16 window;
	u16 checksum;
	u16 urgent;
};

/* UDP, SCTP and ICMP share eight bytes that hold all we need. */
struct l4_header {
	u16 sport; /* ICMP: type and code */
	u16 dport; /* ICMP: checksum */
	u16 length; /* ICMP echo: id */
	u16 checksum;
};

enum {
	TCP_FIN = 1,
	TCP_SYN = 2,
	TCP_RST = 4,
	TCP_PSH = 8,
	TCP_ACK = 16,
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMPV6_UNREACHABLE = 1,
	ICMPV6_PARAMETER_PROBLEM = 4, /* 2: packet too big, 3: time exceeded */
	ICMPV6_ECHO = 128,
	ICMPV6_ECHO_REPLY = 129,
	ICMPV6_NEIGHBOR_ADVERTISEMENT = 136,
	IPV6_EXTENSIONS_MAX = 4,
	SCTP_CHUNK_INIT = 1,
	ETHERTYPE_IPV4 = 0x0800,
	ETHERTYPE_ARP = 0x0806,
	ETHERTYPE_IPV6 = 0x86dd,
};

INLINE bool is_icmp_error(u8 family, u8 type)
{
	if (family == 4)
		return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER_PROBLEM;
	return type >= ICMPV6_UNREACHABLE && type <= ICMPV6_PARAMETER_PROBLEM;
}

INLINE bool is_icmp_echo(u8 family, u8 type)
{
	return family == 4 ? (type == ICMP_ECHO || type == ICMP_ECHO_REPLY) :
			     (type == ICMPV6_ECHO || type == ICMPV6_ECHO_REPLY);
}

INLINE bool is_icmp_request(u8 family, u8 type)
{
	return type == (family == 4 ? ICMP_ECHO : ICMPV6_ECHO);
}
