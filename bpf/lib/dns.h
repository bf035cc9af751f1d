/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* DNS messages of pods under DNS rules: the question, and who waits for which answer. */
#pragma once
#include "conntrack.h"
#include "context.h"
#include "drop_reasons.h"
#include "events.h"
#include "fqdn.h"
#include "l7.h"
#include "names.h"
#include "own_packet.h"
#include "parse.h"

enum {
	DNS_HEADER = 12,
	DNS_QUESTION_MAX = 255 + 4,
	DNS_LOADED = 288,     /* bytes of a message that are looked at here: header and question fit */
	DNS_ADDRESSES = 64,   /* of one answer that can be learned */
	DNS_RECORDS = 512,    /* of one answer */
	DNS_STEPS = 48,       /* labels and records in one run */
	DNS_OPT_LENGTH = 11,  /* of an OPT record without options */
	DNS_UDP_SIZE = 1232,  /* that it offers */
	DNS_PREFIX = 2,       /* TCP: the length, before each message */
	DNS_KEPT = 4096,      /* TCP: bytes of an answer in pieces that can be learned; a power of two */
	DNS_ALIASES = 4,      /* of one answer that are told */
	DNS_A = 1,
	DNS_CNAME = 5,
	DNS_AAAA = 28,
	DNS_OPT = 41,
	DNS_IXFR = 251,
	DNS_AXFR = 252,
	DNS_IN = 1,
	DNS_REFUSED = 5,
	/* The third byte of a message ... */
	DNS_QR = 0x80,
	DNS_OPCODE = 0x78,
	DNS_TC = 0x02,
	DNS_RD = 0x01,
	/* ... and the fourth. */
	DNS_CD = 0x10,
	DNS_RCODE = 0x0f,
};

#define DNS_PATIENCE (15 * SECOND) /* an answer that takes longer answers nobody */

struct dns_header {
	u16 id;
	u8 flags;
	u8 code;
	u16 questions;
	u16 answers;
	u16 authorities;
	u16 additional;
};
_Static_assert(sizeof(struct dns_header) == DNS_HEADER, "dns_header");

/* A question that a pod asked. The connection's key has both addresses and ports, so that only the server that was
 * asked can answer, to the port that asked. */
struct dns_asked_key {
	struct ct_key connection;
	u16 id; /* as on the wire */
	u16 pad;
	u32 pad2;
};
_Static_assert(sizeof(struct dns_asked_key) == 48, "dns_asked_key");

struct dns_asked {
	u64 name; /* hash */
	u64 asked_ns;
	u16 qtype;
	u16 qclass;
	u32 pad;
};
_Static_assert(sizeof(struct dns_asked) == 24, "dns_asked");

/* Least recently used first: a question that is forgotten is asked again. */
BPF_F_TABLE("lru_hash", struct dns_asked_key, struct dns_asked, dns_asked, 16384, 0);

/* Of a connection to a server over TCP: the server's stream. Least recently used first: its answers are not heard then. */
struct dns_stream {
	u32 next; /* sequence number */
	u32 skip; /* bytes of an answer that nobody waits for, still to come */
	u32 kept; /* bytes of an answer that came so far, in dns_kept */
	u32 answered; /* answers that passed */
};
BPF_F_TABLE("lru_hash", struct ct_key, struct dns_stream, dns_streams, 8192, 0);

/* An answer that comes in several segments, with its length in front. They are passed on as they come: the last one makes
 * it an answer, and that passes only when all of it was learned. */
struct dns_kept {
	u8 bytes[DNS_KEPT + STREAM_PIECE];
};
BPF_F_TABLE("lru_hash", struct ct_key, struct dns_kept, dns_kept, 256, 0);
PERCPU_MAP(dns_kept_fresh, struct dns_kept, 1);

/* What the programs hand to one another about the message at hand. */
struct dns_work {
	u64 hash; /* of the name */
	u64 asked_ns;
	u64 expires_ns; /* of what is learned, with FQDN_CONCERNS */
	u64 oldest_ns;
	u32 slot;
	u32 state;  /* of the automaton */
	u32 have;   /* bytes of the message in `message` */
	u32 at;     /* next byte to read, from the start of the message */
	u32 length; /* bytes of the message */
	u32 question_end;
	u32 base;     /* of the message in the packet */
	u32 position; /* TCP: payload bytes that are done */
	u32 left;   /* of the label at hand */
	u32 name_len;
	u32 ttl;
	u32 identity; /* of the selectors that match the name */
	u32 records;  /* answers still to read */
	u32 addresses;
	u16 id;
	u16 qtype;
	u16 qclass;
	u8 rcode;
	u8 skipped; /* of the record at hand: its owner's name is behind us */
	u8 continuing; /* TCP: messages of the segment before the one at hand */
	u8 kept;       /* TCP: the message is in dns_kept, not in the packet */
	u8 aliases;
	u8 finished;   /* TCP: answers that end in the segment */
	u32 had;       /* TCP: bytes of the window before the segment at hand */
	u32 refused;   /* TCP: bytes of answers to questions of the segment, in the window */
	u32 pending;   /* TCP: the answer at hand is read, but not learned */
	u32 aliases_len;
	u32 alias_at[DNS_ALIASES]; /* where the records' names are in the message */
	u8 name[NAME_BYTES];
	u8 message[512]; /* the verifier sees offsets up to 511 */
	u8 record[16];   /* a record's fixed part */
	u8 alias_names[NAME_BYTES + STREAM_PIECE]; /* each with a final dot and a zero */
	struct addr found[DNS_ADDRESSES];
	struct own_packet own;
};

PERCPU_MAP(dns_scratch, struct dns_work, 1);
PERCPU_MAP(fqdn_fresh, struct fqdn_name, 1);
PERCPU_MAP(fqdn_ip_fresh, struct fqdn_ip, 1);

/* `size` bytes at `at` of the message at hand. */
INLINE bool dns_bytes(struct __sk_buff *skb, const struct dns_work *w, const struct dns_kept *kept, u32 at, void *to, u32 size)
{
	if (kept)
		return !bpf_probe_read_kernel(to, size, &kept->bytes[BOUNDED(DNS_PREFIX + at, DNS_KEPT - 1)]);
	return !bpf_skb_load_bytes(skb, w->base + at, to, size);
}

INLINE struct dns_work *dns_working(void)
{
	u32 zero = 0;

	return dns_scratch.lookup(&zero);
}

/* Read the name at w->at of w->message: lower-case, with a final dot, walking the automaton on the way. False: it is
 * not a name, or one with a pointer, which no question needs, or a label has a dot in it. */
INLINE bool dns_read_name(struct dns_work *w, const struct name_table *table)
{
	bool done = false;
	int i;
	u8 c;

	__builtin_memset(w->name, 0, sizeof(w->name));
	w->name_len = 0;
	w->left = 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < 256; i++) {
		u32 at = w->at, out = w->name_len;

		asm volatile("" ::: "memory");
		if (at >= w->have || at >= 511 || out >= NAME_BYTES - 2)
			return false;
		c = w->message[BOUNDED(at, 511)];
		w->at = at + 1;
		if (w->left) {
			w->left -= 1;
			c = name_fold(c);
			if (c == '.' || !c)
				return false;
		} else {
			if (c > 63)
				return false;
			w->left = c;
			if (!i && c)
				continue; /* no dot before the first label */
			done = !c;
			c = '.';
		}
		w->name[BOUNDED(out, NAME_BYTES - 1)] = c;
		w->name_len = out + 1;
		w->state = name_next(table, w->state, c);
		if (done)
			return true;
	}
	return false;
}
