/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* HTTP policy: the programs behind TAIL_HTTP_*. */
