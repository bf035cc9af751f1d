/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Policy about names, as a unit of its own: compiled beside the others, most packets never come here. See NAMES.md. */
#include "fqdn.c"
#include "tls.c"
#include "dns_learn.c"
#include "dns.c"
#include "dns_stream.c"
#include "dns_stream_ask.c"
