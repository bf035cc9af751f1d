/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* HTTP's structs for tests/datapath/test_http_abi.py, as layout_check.c has the others. Never loaded. */
#include "lib/maps.h"
#include "lib/http_memo.h"
#include "lib/http_state.h"
#include "lib/http_tables.h"

ARRAY_MAP(lay_http_flow, struct http_flow, 1);
ARRAY_MAP(lay_http_parse, struct http_parse, 1);
ARRAY_MAP(lay_http_memo, struct http_memo, 1);
