/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* DNS rules: what pods may ask, and which answers they were waiting for.
 *
 * dns_query  (tail call of from_endpoint): the name of a question -> its rule set -> on its way, or REFUSED
 * dns_answer (tail call of ingress):       an answer to a question that this pod asked? Then its records: dns_learn.c */
#include "lib/deliver.h"
#include "lib/dns_message.h"
#include "lib/tailcall.h"
#include "lib/tls.h"

INLINE int dns_refuse(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	int reason;

	dns_emit(ctx, w, EVENT_DNS_QUERY, DROP_DNS_DENIED, false);
	count_packet(DIR_EGRESS, DROP_DNS_DENIED, ctx->ip_len);
	reason = dns_rebuild(skb, ctx, w, true);
	return reason ? -reason : own_return(skb, ctx);
}

/* Remember the question: the answer is believed only if it was asked. */
INLINE bool dns_remember(struct pkt_ctx *ctx, const struct dns_work *w)
{
	struct dns_asked_key key = { .connection = ctx->key, .id = w->id };
	struct dns_asked asked = {
		.name = w->hash, .asked_ns = precise_now(ctx), .qtype = w->qtype, .qclass = w->qclass,
	};

	return !dns_asked.update(&key, &asked);
}

/* A segment of the pod's. */
INLINE int dns_ask_stream(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	struct tls_conn *conn = tls_conns.lookup(&ctx->key);

	w->continuing = 0;
	w->refused = 0;
	if (conn && conn->mode == TLS_ANSWERED && !(ctx->tcp_flags & TCP_SYN))
		tailcalls.call(skb, TAIL_DNS_STREAM_REFUSE);
	else
		tailcalls.call(skb, ctx->payload_len ? TAIL_DNS_STREAM_ASK : TAIL_FORWARD);
	return -DROP_MISSED_TAIL_CALL;
}

INLINE int dns_ask(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	struct endpoint_info *pod = endpoint_by_id(ctx->src_endpoint);
	struct names_config *cfg = names_configuration();
	struct name_table *table = name_table_of(cfg);
	bool allowed, audit;
	int reason;

	if (!cfg || !table || !pod)
		return -DROP_EP_NOT_READY;
	audit = pod->flags & ENDPOINT_F_AUDIT;
	if (ctx->protocol == PROTO_TCP) {
		reason = tls_check_segment(ctx);
		if (reason || (ctx->payload_len && (ctx->tcp_flags & TCP_SYN)))
			return -DROP_DNS_MALFORMED;
		return dns_ask_stream(skb, ctx, w);
	}
	reason = dns_check_datagram(skb, ctx);
	if (!reason)
		reason = dns_load(skb, ctx, w);
	if (!reason)
		reason = dns_read_question(w, table, ctx->l7_ruleset, cfg->seed);
	if (!reason && !dns_is_question(w))
		reason = DROP_DNS_MALFORMED;
	if (reason)
		return -reason;
	w->id = ((struct dns_header *)w->message)->id;
	w->rcode = 0;
	allowed = w->state & NAME_ACCEPT;
	if (!allowed && !audit)
		return dns_refuse(skb, ctx, w);
	if (!dns_remember(ctx, w))
		return -DROP_CT_MAP_INSERTION_FAILED;
	dns_emit(ctx, w, EVENT_DNS_QUERY, allowed ? 0 : DROP_DNS_DENIED, !allowed);
	tailcalls.call(skb, TAIL_FORWARD);
	return -DROP_MISSED_TAIL_CALL;
}

int dns_query(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *w = dns_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return finish(skb, ctx, dns_ask(skb, ctx, w));
}

INLINE bool dns_is_transfer(const struct dns_asked *asked)
{
	return asked->qtype == DNS_AXFR || asked->qtype == DNS_IXFR;
}

/* Does the message answer what was asked? 0 or a drop reason. */
INLINE int dns_match_question(struct dns_work *w, const struct dns_asked *asked, const struct name_table *table, u64 seed)
{
	struct dns_header *header = (void *)w->message;
	int reason;

	if (!(header->flags & DNS_QR))
		return DROP_DNS_MALFORMED;
	if (!header->questions) {
		w->at = DNS_HEADER;
		w->name_len = 0;
		w->qtype = asked->qtype;
		w->qclass = asked->qclass;
		/* An error that was found before the question was read, or more of a transfer (RFC 5936, 2.2.1). */
		return dns_is_transfer(asked) || ((header->code & DNS_RCODE) && !header->answers) ? 0 : DROP_DNS_MALFORMED;
	}
	if (header->questions != bpf_htons(1))
		return DROP_DNS_MALFORMED;
	reason = dns_read_question(w, table, NAME_FQDN, seed);
	if (reason)
		return reason;
	return asked->name != w->hash || asked->qtype != w->qtype || asked->qclass != w->qclass ? DROP_DNS_UNSOLICITED : 0;
}

/* Is this what the pod waits for? 0 or a drop reason. */
INLINE int dns_match_answer(struct pkt_ctx *ctx, struct dns_work *w, const struct name_table *table, u64 seed)
{
	struct dns_header *header = (void *)w->message;
	struct dns_asked_key key = { .connection = ctx->key, .id = header->id };
	struct dns_asked *asked = dns_asked.lookup(&key);
	bool transfer;
	int reason;

	if (!asked || precise_now(ctx) - asked->asked_ns > DNS_PATIENCE)
		return DROP_DNS_UNSOLICITED;
	reason = dns_match_question(w, asked, table, seed);
	if (reason)
		return reason;
	transfer = dns_is_transfer(asked);
	w->asked_ns = asked->asked_ns;
	if (transfer)
		asked->asked_ns = precise_now(ctx); /* of many messages */
	w->id = header->id;
	w->rcode = header->code & DNS_RCODE;
	/* The addresses of a whole zone are not those of its name. */
	w->identity = transfer || !w->name_len ? 0 : name_identity(table, w->state);
	w->records = transfer ? 0 : bpf_ntohs(header->answers);
	w->question_end = w->at;
	w->addresses = 0;
	w->aliases = 0;
	w->aliases_len = 0;
	w->skipped = 0;
	w->ttl = ~0U;
	return 0;
}

INLINE int dns_hear(struct __sk_buff *skb, struct pkt_ctx *ctx, struct dns_work *w)
{
	struct names_config *cfg = names_configuration();
	struct name_table *table = name_table_of(cfg);
	int reason;

	if (skb->mark == OWN_PACKET_MARK)
		return deliver(skb, ctx);
	if (!cfg || !table)
		return -DROP_EP_NOT_READY;
	if (ctx->protocol == PROTO_TCP) {
		w->continuing = 0;
		tailcalls.call(skb, TAIL_DNS_STREAM_HEAR);
		return -DROP_MISSED_TAIL_CALL;
	}
	if (ctx->flags & CTX_F_NO_L4)
		return -DROP_IP_FRAGMENTATION_NOT_SUPPORTED;
	reason = dns_load(skb, ctx, w);
	if (!reason)
		reason = dns_match_answer(ctx, w, table, cfg->seed);
	if (reason)
		return -reason;
	/* The rest of a fragmented answer is somewhere else. */
	if (dns_check_datagram(skb, ctx))
		return dns_cut(skb, ctx, w);
	tailcalls.call(skb, TAIL_DNS_RECORDS);
	return -DROP_MISSED_TAIL_CALL;
}

int dns_answer(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	struct dns_work *w = dns_working();

	if (!ctx || !w)
		return TC_ACT_SHOT;
	return finish(skb, ctx, dns_hear(skb, ctx, w));
}
