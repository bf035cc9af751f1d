/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What BCC's prelude wants of a kernel tree, and no more: the programs use UAPI structs only, so that a node needs
 * Debian's linux-libc-dev but no kernel headers. */
#define CONFIG_BPF_SYSCALL 1
#include <linux/types.h>
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
#ifndef __cplusplus
#define bool _Bool
#define true 1
#define false 0
#define NULL ((void *)0)
#endif
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef long ssize_t;
#define PAGE_SIZE 4096
#define PAGE_SHIFT 12
