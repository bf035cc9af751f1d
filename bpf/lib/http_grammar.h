/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The grammar of HTTP/1.x request streams is a table (services/agent/calc/http_grammar.py): 256 states x 256 bytes of
 * u16, low byte the next state, high byte what to do with the byte; and once more for requests whose fields a rule
 * looks at, with the fields' bytes fed to the policy automaton. Here is only what the table refers to. */
#pragma once
#include "types.h"

/* "HTTP/1.1", as a little-endian or big-endian machine reads it. */
#define HTTP_VERSION_11 bpf_htonll(0x485454502f312e31ULL)
#define HTTP_GRAMMAR_STATES 256
#define HTTP_GRAMMAR_VIEWS 2
#define HTTP_ATTENTIVE HTTP_GRAMMAR_STATES /* added to a phase: the second view */

/* States that the code knows by name (services.agent.abi.http.HttpPhase). */
enum http_phase {
	HTTP_PHASE_DEAD = 0,
	HTTP_PHASE_START = 1,
	HTTP_PHASE_BODY = 2,
	HTTP_PHASE_CHUNK_DATA = 3,
	HTTP_PHASE_CHUNK_SIZE = 4,
	HTTP_PHASE_CHUNK_END = 5,
	HTTP_PHASE_TRAILER = 6,
	HTTP_PHASE_VALUE = 7, /* of a field that means nothing here: most bytes of most heads */
	HTTP_PHASE_FIELD = 8, /* a line of the head begins */
};

/* services.agent.abi.http.HttpAction. A table of zeros refuses everything. NONE and FEED are so
 * frequent that the byte loop does them itself. */
enum http_action {
	HTTP_ACT_REFUSE = 0,
	HTTP_ACT_NONE = 1,
	HTTP_ACT_FEED = 2, /* one step of the policy automaton */
	HTTP_ACT_METHOD_END = 3,
	HTTP_ACT_TARGET = 4, /* the path of an absolute target begins */
	HTTP_ACT_ESCAPE_FIRST = 5,
	HTTP_ACT_ESCAPE_SECOND = 6, /* the next state is the row in which the decoded byte is looked up */
	HTTP_ACT_ESCAPE_KEPT = 7,   /* there: the escape goes on as it was sent */
	HTTP_ACT_QUERY = 8,
	HTTP_ACT_ABSOLUTE = 9,
	HTTP_ACT_ROOT = 10, /* an absolute target without a path */
	HTTP_ACT_HEAD_END = 11,
	HTTP_ACT_LINE_10 = 12,
	HTTP_ACT_LINE_11 = 13,
	HTTP_ACT_HOST_NAME = 14,
	HTTP_ACT_LENGTH_NAME = 15,
	HTTP_ACT_LENGTH_DIGIT = 16,
	HTTP_ACT_CODING_NAME = 17,
	HTTP_ACT_CHUNK_DIGIT = 18,
	HTTP_ACT_CHUNK_LINE = 19,
	HTTP_ACT_MESSAGE_END = 20,
	HTTP_ACT_EMPTY_LINE = 21, /* before a request */
	HTTP_ACT_REFUSE_TLS = 22,
	HTTP_ACT_REFUSE_HTTP2 = 23,
	HTTP_ACT_VALUE = 24, /* such a value begins */
	HTTP_ACT_TARGET_END = 25,
	HTTP_ACT_LINE_END = 26, /* of a field, where rules look at fields */
	HTTP_ACT_FOREIGN = 27,  /* a byte beyond ASCII in a value, likewise */
	HTTP_ACT_UPGRADE_NAME = 28,  /* such a field begins, or goes on with something else than a WebSocket */
	HTTP_ACT_UPGRADE_VALUE = 29, /* it names a WebSocket */
	HTTP_ACT_TRACE_NAME = 30,    /* the value of a traceparent begins */
};

struct http_grammar {
	/* u16; BCC describes every element else */
	char next[2 * HTTP_GRAMMAR_VIEWS * HTTP_GRAMMAR_STATES * 256] __attribute__((aligned(8)));
};

ARRAY_MAP(http_grammar, struct http_grammar, 1);

INLINE struct http_grammar *http_grammar_table(void)
{
	u32 zero = 0;

	return http_grammar.lookup(&zero);
}

INLINE u32 http_grammar_next(const struct http_grammar *grammar, u32 phase, u8 c)
{
	return ((const u16 *)grammar->next)[((phase & (HTTP_GRAMMAR_VIEWS * HTTP_GRAMMAR_STATES - 1)) << 8) | c];
}

/* Eight bytes of a value. */
#define HTTP_EACH(byte) (0x0101010101010101ULL * (byte))

INLINE u8 http_hex(u8 c)
{
	return (c & 15) + (c >= 'A' ? 9 : 0);
}
