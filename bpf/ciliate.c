/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The datapath as one translation unit: compiled once, so that all programs share their maps. */
#include "dsr.c"
#include "endpoint.c"
#include "forward.c"
#include "http.c"
#include "http_deny.c"
#include "leave.c"
#include "nat.c"
#include "netdev.c"
#include "north_south.c"
#include "overlay.c"
