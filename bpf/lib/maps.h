/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map of the datapath, by way of the header that owns it. */
#pragma once
#include "config.h"
#include "conntrack.h"
#include "context.h"
#include "ct_room.h"
#include "endpoints.h"
#include "events.h"
#include "ipcache.h"
#include "lb.h"
#include "metrics.h"
#include "parse.h"
#include "policy.h"
#include "refined.h"
#include "sock.h"
#include "tailcall.h"
