/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How a refused request is answered. */
#pragma once
#include "http_hook.h"
#include "own_segment.h"

enum http_answer {
	HTTP_ANSWER_FORBIDDEN = 1, /* 403 and FIN to the client, RST to the server */
	HTTP_ANSWER_RESET = 2,     /* RST to both */
	HTTP_ANSWER_AFTER = 3,     /* the client goes on after its answer: acknowledge, let it close */
	HTTP_ANSWER_AUDIT = 4,     /* nobody is answered: tell what would have been, and follow the connection no more */
};

#define HTTP_403_HEAD \
	"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 15\r\nConnection: close\r\n\r\n"
#define HTTP_403_BODY "Access denied\r\n"
#define HTTP_403 HTTP_403_HEAD HTTP_403_BODY

enum {
	HTTP_403_HEAD_LENGTH = sizeof(HTTP_403_HEAD) - 1,
	HTTP_403_LENGTH = sizeof(HTTP_403) - 1,
};

/* Turn the packet at hand into `segment`, to the client. 0 or a drop reason. */
INLINE int http_build(struct __sk_buff *skb, struct http_work *w, struct pkt_ctx *ctx, const struct own_segment *segment)
{
	u8 *l4 = own_l4(&w->own.packet, ctx), *payload = l4 + sizeof(struct tcp_header);
	u32 header;

	__builtin_memset(l4, 0, 144);
	header = own_tcp_header(&w->own, ctx, l4, segment);
	if (segment->payload && w->own.timestamps)
		__builtin_memcpy(payload + OWN_TIMESTAMPS, HTTP_403, HTTP_403_LENGTH);
	else if (segment->payload)
		__builtin_memcpy(payload, HTTP_403, HTTP_403_LENGTH);
	return own_replace(skb, &w->own, ctx, segment, header + segment->payload);
}

/* Send `segment` to the client; the packet at hand is built over. 0 or a drop reason. */
INLINE int http_send_to_client(struct __sk_buff *skb, struct http_work *w, struct pkt_ctx *ctx,
			       struct own_segment *segment)
{
	int reason;

	own_name_server(ctx, segment);
	reason = http_build(skb, w, ctx, segment);
	return reason ? reason : own_copy_to_client(skb, ctx, HTTP_MARK_ANSWER);
}
