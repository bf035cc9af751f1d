/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hooks on the host side of a pod's veth, and the ingress stage that they share with the overlay.
 *
 * from_endpoint (tc ingress): pod -> parse, anti-spoofing, Service, egress policy -> local pod, overlay or stack
 * to_endpoint   (tc egress):  node's stack -> parse, who is it -> ingress -> pod
 * forward       (tail call):  the last step of from_endpoint, for packets that L7 rules had to look into
 * ingress       (tail call):  ingress policy of ctx->dst_endpoint, replies of Services, HTTP, delivery
 */
#include "lib/deliver.h"
#include "lib/hairpin.h"
#include "lib/http_hook.h"
#include "lib/hostfw.h"
#include "lib/fqdn.h"
#include "lib/l7_path.h"
#include "lib/ipcache.h"
#include "lib/link.h"
#include "lib/overlay.h"
#include "lib/refuse.h"
#include "lib/sock_name.h"
#include "lib/service_path.h"
#include "lib/tailcall.h"
#include "lib/tls.h"
#include "lib/verdict.h"

/* Is the packet really the pod's? */
INLINE int check_source(struct __sk_buff *skb, const struct pkt_ctx *ctx, const struct endpoint_info *ep)
{
	struct eth_header *eth = packet_bytes(skb, 0, sizeof(*eth));

	if (!eth || !mac_equal(eth->src, ep->mac))
		return DROP_INVALID_SOURCE_MAC;
	if (!addr_equal(&ctx->saddr, ctx->family == 4 ? &ep->ipv4 : &ep->ipv6))
		return DROP_INVALID_SOURCE_IP;
	return 0;
}

/* Packets that cannot concern a Service any more spare the look-up: they belong to a connection that was seen to go
 * where it goes. */
INLINE bool is_settled(const struct pkt_ctx *ctx, const struct ct_entry *entry)
{
	if (!entry)
		return false;
	if (ctx->protocol == PROTO_TCP)
		return !(ctx->flags & CTX_F_SYN);
	return ctx->protocol != PROTO_UDP || entry->direction == DIR_INGRESS || (entry->flags & CT_F_SEEN_REPLY);
}

/* A packet that opens something to elsewhere than a pod of this node: `stack_bound` when no overlay takes it either. */
INLINE int check_elsewhere(const struct pkt_ctx *ctx, bool stack_bound)
{
	if (speaks_vxlan(ctx))
		return DROP_INVALID_PACKET_DROPPED;
	return stack_bound && is_service_address(ctx) ? DROP_SERVICE_BACKEND_NOT_FOUND : 0;
}

/* The sender's policy has agreed: on to where it goes. */
INLINE int forward_from_endpoint(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct endpoint_info *dst,
				 const struct remote_endpoint_info *remote)
{
	count_packet(DIR_EGRESS, 0, ctx->ip_len);
	if (unlikely(ctx->flags & CTX_F_NORTH_SOUTH)) {
		tailcalls.call(skb, TAIL_NAT_OUT); /* an answer with a Service's address */
		return -DROP_MISSED_TAIL_CALL;
	}
	if (dst) {
		ctx->dst_endpoint = dst->id;
		ctx->delivery = DELIVER_PEER;
		tailcalls.call(skb, TAIL_INGRESS);
		KNOWN_SLOT(TAIL_INGRESS);
		return -DROP_MISSED_TAIL_CALL;
	}
	if (unlikely(leaves_specially(datapath_config(), remote))) {
		tailcalls.call(skb, TAIL_LEAVE);
		return -DROP_MISSED_TAIL_CALL;
	}
	return remote ? encapsulate(skb, ctx, remote) : to_host(skb, ctx);
}

/* What L7 rules let pass. */
INLINE int handle_forward(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct endpoint_info *dst = ctx->dst_endpoint ? endpoint_by_id(ctx->dst_endpoint) : NULL;
	struct remote_endpoint_info *remote = dst ? NULL : ipcache_lookup(&ctx->daddr);

	if (remote && !by_overlay(remote))
		remote = NULL;
	return forward_from_endpoint(skb, ctx, dst, remote);
}

int forward(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	if (!ctx)
		return TC_ACT_SHOT;
	return finish_or_refuse(skb, ctx, handle_forward(skb, ctx));
}

/* A packet from a server to its client on a connection under HTTP rules: of the server's, or of the client's pod. */
int http_reply(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();
	int reason;

	if (!ctx)
		return TC_ACT_SHOT;
	reason = http_reply_hook(skb, ctx);
	if (reason)
		return finish(skb, ctx, -reason);
	return finish_or_refuse(skb, ctx,
				ctx->direction == DIR_INGRESS ? deliver(skb, ctx) : handle_forward(skb, ctx));
}

/* Where does it go, may it go there, and then send it. */
INLINE int send_from_endpoint(struct __sk_buff *skb, struct pkt_ctx *ctx, const struct endpoint_info *src,
			      struct ct_entry *entry)
{
	struct remote_endpoint_info *remote = NULL;
	struct endpoint_info *dst = NULL;
	int reason;

	if (entry && entry->peer_endpoint) {
		dst = endpoint_by_id(entry->peer_endpoint);
		if (dst && !endpoint_owns(dst, &ctx->daddr))
			dst = NULL;
	}
	/* An open connection to somewhere else stays there; should its address have become a pod of this node, the
	 * stack delivers it. */
	if (!dst && (!entry || entry->peer_endpoint))
		dst = endpoint_by_addr(&ctx->daddr);
	if (dst) {
		ctx->dst_identity = dst->identity;
	} else {
		remote = ipcache_lookup(&ctx->daddr);
		ctx->dst_identity = remote ? remote->identity : world_identity(&ctx->daddr);
		if (remote && !by_overlay(remote))
			remote = NULL;
		reason = entry ? 0 : check_elsewhere(ctx, !remote);
		if (reason)
			return -reason;
	}
	if (unlikely(!ctx->service_id && (!entry || ct_is_over(entry, ctx))))
		name_service(skb, ctx);
	if (unlikely(src->flags & ENDPOINT_F_FQDN) && fqdn_decides(ctx, entry, src)) {
		tailcalls.call(skb, TAIL_NAMED);
		return -DROP_MISSED_TAIL_CALL;
	}
	reason = police(ctx, entry, src, DIR_EGRESS, ctx->dst_identity, dst ? dst->id : 0);
	if (reason)
		return -reason;
	if (unlikely(ctx->flags & CTX_F_HTTP)) {
		reason = l7_from_endpoint(skb, ctx, src, dst ? dst->id : 0);
		if (reason)
			return -reason;
	}
	return forward_from_endpoint(skb, ctx, dst, remote);
}

/* A packet that may concern a Service: what has to become of it (nat->flags 0: nothing). 0, 1 when it goes back to the
 * pod itself, or a negative drop reason. ctx->key is the connection's afterwards. */
INLINE int translate(struct pkt_ctx *ctx, const struct endpoint_info *src, struct nat *nat)
{
	int reason, service;

	if (is_hairpin_reply(ctx)) {
		reason = hairpin_reply(ctx, nat);
		return reason ? -reason : 1;
	}
	service = service_backend(ctx, &nat->daddr, &nat->dport);
	if (service <= 0) {
		ctx->key.scope = CT_SCOPE_CONNECTION;
		return service;
	}
	nat->flags = NAT_DESTINATION;
	if (!addr_equal(&nat->daddr, &ctx->saddr))
		return 0;
	reason = hairpin_request(ctx, src, nat);
	return reason ? -reason : 1;
}

INLINE int handle_from_endpoint(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	int reason = parse_packet(skb, ctx), hairpin = 0;
	struct endpoint_info *src = endpoint_by_ifindex(skb->ifindex);
	struct ct_entry *entry;
	struct nat nat = {};

	if (!src)
		return -DROP_EP_NOT_READY;
	ctx->src_endpoint = src->id;
	ctx->src_identity = src->identity;
	if (reason == PARSE_LINK_SCOPE)
		return link_from_endpoint(skb, ctx, src);
	if (!reason)
		reason = check_source(skb, ctx, src);
	if (reason)
		return -reason;

	ct_key_set(ctx, true);
	entry = ctx->flags & CTX_F_SYN ? ct_lookup_opening(ctx, endpoint_by_addr(&ctx->daddr)) : ct.lookup(&ctx->key);
	if (!is_settled(ctx, entry) && has_services(ctx->protocol)) {
		hairpin = translate(ctx, src, &nat);
		if (hairpin < 0)
			return hairpin;
		if (nat.flags) {
			reason = nat_apply(skb, ctx, &nat);
			if (reason)
				return -reason;
			if (hairpin)
				return hairpin_deliver(skb, ctx);
			ct_key_set(ctx, true);
			entry = ct.lookup(&ctx->key);
		}
	}
	return send_from_endpoint(skb, ctx, src, entry);
}

/* Tail call, for a packet that was dropped as it came: its sender gets an answer. */
int refuse(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	if (!ctx || refuse_packet(skb, ctx))
		return TC_ACT_SHOT;
	/* Into the pod without asking its policy: nobody else speaks to it. */
	return ctx->src_endpoint ? bpf_redirect_peer(skb->ifindex, 0) : bpf_redirect(skb->ifindex, 0);
}

int from_endpoint(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	if (!ctx)
		return TC_ACT_SHOT;
	ctx->direction = DIR_EGRESS;
	return finish_or_refuse(skb, ctx, handle_from_endpoint(skb, ctx));
}

/* A packet to a pod on a connection under L7 rules, the pod's own or those of what it asked. 0 to go on, or a drop
 * reason. */
INLINE int l7_to_endpoint(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	u32 kind = l7_kind(ctx->l7_ruleset);

	if (ctx->ct_state == CT_REPLY && kind == L7_KIND_TLS)
		tls_heard(ctx);
	if (ctx->ct_state == CT_NEW || ctx->ct_state == CT_ESTABLISHED)
		tailcalls.call(skb, kind == L7_KIND_TLS ? TAIL_TLS_HELLO : TAIL_HTTP_ENTRY);
	else if (ctx->ct_state == CT_REPLY && kind == L7_KIND_HTTP && ctx->protocol == PROTO_TCP)
		tailcalls.call(skb, TAIL_HTTP_REPLY);
	else if (ctx->ct_state == CT_REPLY && kind == L7_KIND_DNS)
		tailcalls.call(skb, TAIL_DNS_ANSWER);
	else
		return 0;
	return DROP_MISSED_TAIL_CALL;
}

INLINE int handle_ingress(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	struct endpoint_info *dst = endpoint_by_id(ctx->dst_endpoint);
	struct nat nat = {};
	int reason;

	if (!dst)
		return -DROP_EP_NOT_READY;
	ctx->dst_identity = dst->identity;
	ctx->dst_ifindex = dst->ifindex;
	ctx->l7_ruleset = 0;
	ctx->flags &= ~(CTX_F_HTTP | CTX_F_AUDIT); /* that was the sender's */
	ct_key_set(ctx, false);
	reason = police(ctx, ct.lookup(&ctx->key), dst, DIR_INGRESS, ctx->src_identity, ctx->src_endpoint);
	if (!reason && (ctx->flags & CTX_F_REVNAT)) {
		nat.saddr = ctx->service_address;
		nat.sport = ctx->service_port;
		nat.flags = NAT_SOURCE;
		reason = ctx->ct_state == CT_RELATED ? nat_related(skb, ctx, &nat.saddr, nat.sport) :
						       nat_apply(skb, ctx, &nat);
	}
	if (reason)
		return -reason;
	if (unlikely(ctx->flags & CTX_F_HTTP)) {
		if (dst->flags & ENDPOINT_F_AUDIT)
			ctx->flags |= CTX_F_AUDIT;
		reason = l7_to_endpoint(skb, ctx);
		if (reason)
			return -reason;
	}
	return deliver(skb, ctx);
}

int ingress(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	if (!ctx)
		return TC_ACT_SHOT;
	ctx->direction = DIR_INGRESS;
	return finish(skb, ctx, handle_ingress(skb, ctx));
}

INLINE int handle_to_endpoint(struct __sk_buff *skb, struct pkt_ctx *ctx)
{
	int reason = parse_packet(skb, ctx);
	struct endpoint_info *dst = endpoint_by_ifindex(skb->ifindex);
	struct remote_endpoint_info *from;

	if (reason == PARSE_LINK_SCOPE)
		return TC_ACT_OK; /* the node on its own link */
	if (!dst)
		return -DROP_EP_NOT_READY;
	ctx->dst_endpoint = dst->id;
	ctx->dst_identity = dst->identity;
	if (!reason && !endpoint_owns(dst, &ctx->daddr))
		reason = DROP_STALE_OR_UNROUTABLE_IP;
	if (reason)
		return -reason;
	from = ipcache_lookup(&ctx->saddr);
	ctx->src_identity = from ? from->identity : world_identity(&ctx->saddr);
	/* Where there is an overlay, other nodes' pods come by it and never by the stack. */
	if (from && is_cluster_pod(from->identity) && by_overlay(from))
		return -DROP_INVALID_SOURCE_IP;
	ctx->delivery = DELIVER_PASS;
	if (ctx->src_identity == IDENTITY_HOST && may_open(ctx))
		name_service(skb, ctx); /* the node's own processes */
	if (ctx->src_identity == IDENTITY_HOST && unlikely(host_endpoint())) {
		ctx->direction = DIR_EGRESS; /* the node's own turn comes first */
		tailcalls.call(skb, TAIL_HOST_POLICY);
		return -DROP_MISSED_TAIL_CALL;
	}
	tailcalls.call(skb, TAIL_INGRESS);
	KNOWN_SLOT(TAIL_INGRESS);
	return -DROP_MISSED_TAIL_CALL;
}

int to_endpoint(struct __sk_buff *skb)
{
	struct pkt_ctx *ctx = pkt_context();

	if (unlikely(skb->mark == MARK_DELIVERED)) {
		skb->mark = 0;
		return TC_ACT_OK;
	}
	if (!ctx)
		return TC_ACT_SHOT;
	ctx->direction = DIR_INGRESS;
	return finish(skb, ctx, handle_to_endpoint(skb, ctx));
}
