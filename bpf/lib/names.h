/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Names of hosts and the patterns that they are matched with (services/agent/abi/names.py, calc/names.py).
 *
 * One automaton over lower-case names with a final dot, in two generations. The rule sets of `rules.dns` and of
 * `serverNames` each have a state to start from, and end in states with NAME_ACCEPT. Start number 0 is that of all
 * toFQDNs selectors together: its states say which identity stands for the selectors that match.
 *
 * The agent writes the generation that is not in use, then flips `names_config.generation`; before it overwrites one it
 * waits until no program still runs with it. A packet is looked at with one generation. */
#pragma once
#include "l7.h"
#include "stream.h"

#define NAME_BYTES 256 /* 254 at most, and zeros */
#define NAME_RULESETS 1024
#define NAME_STATES 16384
#define NAME_COLUMNS 64
#define NAME_ACCEPT 0x8000
#define NAME_FQDN 0 /* the start of the toFQDNs selectors */

struct names_config {
	u32 generation; /* 0: nothing was written yet. The table is generation & 1 */
	u32 pad;
	u64 seed;       /* of names' hashes: random, kept as long as the maps */
	u64 min_ttl_ns;
	u64 grace_ns; /* that a learned address outlives its TTL */
};
_Static_assert(sizeof(struct names_config) == 32, "names_config");

struct name_table {
	/* BCC describes every element but of strings. */
	char start[2 * NAME_RULESETS] __attribute__((aligned(8))); /* u16 */
	char identity[4 * NAME_STATES];                            /* u32, of the states behind start 0 */
	char column[256];                                          /* of each byte; capital letters have that of small ones */
	char next[2 * NAME_STATES * NAME_COLUMNS];                 /* u16 */
};

ARRAY_MAP(names_config, struct names_config, 1);
ARRAY_MAP(name_tables, struct name_table, 2);

INLINE struct names_config *names_configuration(void)
{
	u32 zero = 0;

	return names_config.lookup(&zero);
}

/* The table in use; NULL for no configuration. */
INLINE struct name_table *name_table_of(const struct names_config *cfg)
{
	u32 index;

	if (!cfg)
		return NULL;
	index = cfg->generation & 1;
	return name_tables.lookup(&index);
}

/* More rule sets than the table has are none: state 0 leads nowhere. */
INLINE u16 name_start(const struct name_table *table, u32 ruleset)
{
	ruleset &= L7_NUMBER_MASK;
	if (ruleset >= NAME_RULESETS)
		return 0;
	return ((const u16 *)table->start)[ruleset & (NAME_RULESETS - 1)];
}

INLINE u16 name_next(const struct name_table *table, u32 state, u8 c)
{
	u32 column = ((const u8 *)table->column)[c] & (NAME_COLUMNS - 1);

	return ((const u16 *)table->next)[(state & (NAME_STATES - 1)) * NAME_COLUMNS + column];
}

INLINE u32 name_identity(const struct name_table *table, u32 state)
{
	return ((const u32 *)table->identity)[state & (NAME_STATES - 1)];
}

INLINE u8 name_fold(u8 c)
{
	return c >= 'A' && c <= 'Z' ? c + 32 : c;
}

/* Keyed, so that nobody makes names collide at will; who must not be fooled compares the names as well. */
INLINE u64 name_hash(const u8 *name, u32 length, u64 seed)
{
	u64 hash = seed ^ length;
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < NAME_BYTES / 8; i++) {
		if (i * 8 >= length)
			break;
		hash ^= ((const u64 *)name)[i];
		hash *= 0x9fb21c651e98df25ULL;
		hash ^= hash >> 32;
	}
	hash *= 0xd6e8feb86659fd93ULL;
	hash ^= hash >> 29;
	return hash ? hash : 1; /* 0 means no name */
}

INLINE bool name_equal(const u8 *a, const u8 *b)
{
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < NAME_BYTES / 8; i++) {
		if (((const u64 *)a)[i] != ((const u64 *)b)[i])
			return false;
		if (!((const u64 *)a)[i])
			break;
	}
	return true;
}
