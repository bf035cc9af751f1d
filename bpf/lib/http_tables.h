/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* HTTP policy as one automaton over `METHOD SP target`, and where rules look at fields over the lines of the head
 * (services/agent/calc/http_fields.py), in two generations.
 *
 * The agent writes the generation that is not in use, then flips `http_config.generation`; a request is decided by the
 * generation that it began with. Before a generation is overwritten `oldest` moves past it and the agent waits until
 * no program still runs with the old value: a request that is that slow is refused. */
#pragma once
#include "types.h"

#define HTTP_RULESETS 1024
#define HTTP_STATES 8192
#define HTTP_COLUMNS 128
#define HTTP_VISIBLE (HTTP_RULESETS - 1) /* no rule set: requests are told, and nothing is refused */
#define HTTP_ACCEPT 0x8000 /* in a next state: what was read so far is allowed */
#define HTTP_DENY_ALL 0    /* the state without a way out */

/* What the rows of some states hold in the columns of control characters. */
enum http_column {
	HTTP_RESULT_DECIDED = 0, /* end of a line: conditions that it is about */
	HTTP_RESULT_MET = 1,     /* those that it meets */
	HTTP_RESULT_ROOT = 2,    /* the state in which the next line begins */
	HTTP_ROOT_HOSTLESS = 0,  /* there: conditions that a request without Host meets */
	HTTP_ROOT_ALTERNATIVES = 1, /* up to the first 0: sets of conditions that suffice */
	HTTP_ROOT_COLUMNS = 32,
};

struct http_config {
	u32 generation; /* the active one; its table is generation & 1 */
	u32 oldest;     /* generations before are overwritten */
	u32 grammar;    /* fingerprint of http_grammar; 0: not written yet */
	u32 traces;     /* 1: traceparent fields are looked at */
	u64 seed;       /* a number that no client knows: hashes begin with it */
};
_Static_assert(sizeof(struct http_config) == 24, "http_config");

struct http_table {
	/* u16 per rule set, and per state and byte. BCC describes every element but of strings. */
	char start[2 * HTTP_RULESETS] __attribute__((aligned(8)));
	char next[2 * HTTP_STATES * HTTP_COLUMNS] __attribute__((aligned(8)));
};

/* A pod's port, in network order. */
struct http_visible_key {
	u32 endpoint;
	u16 port;
	u8 direction; /* enum direction */
	u8 pad;
};
_Static_assert(sizeof(struct http_visible_key) == 8, "http_visible_key");

HASH_MAP(http_visible, u32, u32, 256); /* port of all pods in network order -> 1 */
HASH_MAP(http_visible_pods, struct http_visible_key, u32, 8192);
ARRAY_MAP(http_config, struct http_config, 1);
ARRAY_MAP(http_tables, struct http_table, 2);

INLINE struct http_config *http_configuration(void)
{
	u32 zero = 0;

	return http_config.lookup(&zero);
}

INLINE struct http_table *http_table_of(u32 generation)
{
	u32 index = generation & 1;

	return http_tables.lookup(&index);
}

INLINE u16 http_start(const struct http_table *table, u32 ruleset)
{
	/* More rule sets than the table has are no rule set: they begin in the state that refuses. */
	if (ruleset >= HTTP_RULESETS)
		return HTTP_DENY_ALL;
	return ((const u16 *)table->start)[ruleset & (HTTP_RULESETS - 1)];
}

INLINE u16 http_next(const struct http_table *table, u32 state, u8 c)
{
	u32 index = (state & (HTTP_STATES - 1)) * HTTP_COLUMNS + (c & (HTTP_COLUMNS - 1));

	return ((const u16 *)table->next)[index];
}
