"""Runs the checks of `checks_l7.py` against a sandbox: HTTP, DNS, toFQDNs, TLS server names, and their flows."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Sequence

from services.common.pb.flow import flow_pb2
from services.model.objects import ObjectKey
from services.sandbox import checks_l7 as checks
from services.sandbox import names
from services.sandbox.checking import Checking, path_of
from services.sandbox.checks import AT_ONCE_SECONDS, Check, Result
from services.sandbox.images import FLEET_DOMAIN
from services.sandbox.netns import WORLD4
from services.sandbox.probes import NO_CONNECTION, OpenConnection, curl
from services.sandbox.supervisor import Sandbox
from services.sandbox.world import fleet, world

_RESET = re.compile(r"curl: \((35|55|56)\)")
"""A reset: in the handshake, while sending, while receiving."""


class ScenarioL7(Checking):
    """Runs the checks on a sandbox in which deploy/examples/l7 is ready."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._client, self._shop, self._dns = self._pod("client"), self._pod("shop"), self._pod("coredns")
        key = ObjectKey("Service", "default", "shop")
        self._url = f"http://{sandbox.store.objects[key]['spec']['clusterIP']}"
        self._from = f"default/{self._client.key.name}"

    async def run(self) -> list[Result]:
        """All checks, in the order of `checks.CHECKS`."""
        await self._wait_enforced()
        async with world(self._sandbox) as authority:
            await self._check_names()
            await asyncio.gather(self._check_http(), self._check_connections(), self._check_servers(authority))
        await self._check_flows()
        return self._in_order(checks.CHECKS)

    async def _wait_enforced(self) -> None:
        """Until both nodes know the pods: the first packets must not race the set-up. The checks say what is wrong."""
        deadline = time.monotonic() + 10.0
        while (await curl(self._kubelet, self._client.key, "GET", self._url + checks.ITEM)).text != "200":
            if time.monotonic() > deadline:
                return

    async def _check_http(self) -> None:
        for request in checks.REQUESTS:
            url = self._url + request.path
            self._note_answer(
                request.check, await curl(self._kubelet, self._client.key, request.method, url, request.options)
            )
        options = ("--http2-prior-knowledge",)
        answer = await curl(self._kubelet, self._client.key, "GET", self._url + checks.ITEM, options)
        self._note(checks.HTTP2, checks.RESET if _RESET.match(answer.text) else answer.text)
        await self._check_kept_alive()
        self._check_seen()

    async def _check_kept_alive(self) -> None:
        connection = await OpenConnection.open(self._kubelet, self._client.key, self._shop.addresses[0])
        try:
            paths = (checks.ITEM, checks.ITEM, "/")
            answers = [(await connection.request("GET", path)).text for path in paths]
        finally:
            await connection.close()
        self._note(checks.KEPT_ALIVE, ", ".join(answers))

    def _check_seen(self) -> None:
        """The web server's own log: nothing that was refused, and nobody in between."""
        log = self._sandbox.paths.pod(self._shop.key.namespace, self._shop.key.name) / "access.log"
        lines = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
        requests = {f"{method} {path}" for _, method, path, *_ in lines}
        strangers = {address for address, *_ in lines} - set(self._client.addresses)
        allowed = {f"{each.method} {each.path}" for each in checks.REQUESTS if each.expected == "200"}
        ok = requests == allowed and not strangers
        got = f"{', '.join(sorted(requests))}; from {', '.join(sorted(strangers)) or 'the client'}"
        self._note(checks.SEEN, checks.SEEN.expected if ok else got)

    async def _ask(self, check: Check, name: str, *, tcp: bool = False) -> None:
        answer = await names.ask(self._kubelet, self._client.netns, self._dns.addresses[0], name, tcp=tcp)
        ok = answer.text == check.expected and answer.seconds < AT_ONCE_SECONDS
        self._note(check, f"{answer.text}, {answer.seconds * 1000:.1f} ms", ok)

    async def _check_names(self) -> None:
        address = fleet()[0]
        open_before = await names.connects(self._kubelet, self._client.netns, address, 80, AT_ONCE_SECONDS)
        self._note(checks.UNASKED, NO_CONNECTION if open_before is None else "connected")
        await self._ask(checks.RESOLVES, checks.ALLOWED_NAME)
        await self._ask(checks.RESOLVES_TCP, checks.ALLOWED_NAME, tcp=True)
        await self._ask(checks.RESOLVES_ALIAS, checks.ALIAS)
        await self._ask(checks.FORBIDDEN, checks.FORBIDDEN_NAME)
        await self._ask(checks.FORBIDDEN_TCP, checks.FORBIDDEN_NAME, tcp=True)
        addresses = fleet()
        await self._race(checks.RACE, addresses[: checks.ROUND])
        agent = self._agent()
        os.kill(agent, signal.SIGSTOP)
        try:
            await self._race(checks.AGENT_AWAY, addresses[checks.ROUND :])
        finally:
            os.kill(agent, signal.SIGCONT)

    def _agent(self) -> int:
        node = self._client.document["spec"]["nodeName"]
        return next(int(each["pid"]) for each in self._sandbox.cluster.describe() if each["name"] == f"agent-{node}")

    async def _race(self, check: Check, addresses: Sequence[str]) -> None:
        """Ask for each address's name and connect at once: who is a moment late waits a second for the next SYN."""
        took: list[float] = []
        for address in addresses:
            name = f"{address.replace('.', '-')}.{FLEET_DOMAIN}"
            answer = await names.ask(self._kubelet, self._client.netns, self._dns.addresses[0], name)
            if answer.text != address:
                self._note(check, f"{name}: {answer.text}", False)
                return
            seconds = await names.connects(self._kubelet, self._client.netns, address, 80, AT_ONCE_SECONDS)
            took += [] if seconds is None else [seconds]
        slowest = f", slowest {max(took) * 1000:.1f} ms" if took else ""
        self._note(check, f"{len(took)} by their first SYN{slowest}", len(took) == checks.ROUND)

    async def _check_connections(self) -> None:
        answer = await curl(self._kubelet, self._client.key, "GET", f"http://{checks.ALLOWED_NAME}/", ("-4",))
        self._note_answer(checks.NAMED, answer)
        other = await names.connects(self._kubelet, self._client.netns, WORLD4, 8080, AT_ONCE_SECONDS)
        self._note(checks.UNNAMED, NO_CONNECTION if other is None else "connected")

    async def _check_servers(self, authority: str) -> None:
        for check, host in (
            (checks.SERVER_ALLOWED, checks.OTHER_NAME),
            (checks.SERVER_FORBIDDEN, checks.ALLOWED_NAME),
            (checks.SERVER_UNNAMED, WORLD4),
        ):
            answer = await curl(
                self._kubelet, self._client.key, "GET", f"https://{host}/", ("-4", "--cacert", authority)
            )
            if _RESET.match(answer.text):
                self._note(check, checks.RESET)
            else:
                self._note_answer(check, answer)

    async def _check_flows(self) -> None:
        await asyncio.gather(self._check_http_flows(), self._check_dns_flows(), self._check_tls_flows())

    async def _check_http_flows(self) -> None:
        responses = flow_pb2.FlowFilter(destination_pod=[self._from], http_status_code=["200"])
        await self._check_flow(
            checks.FLOW_RESPONSE,
            responses,
            lambda flow: f"{path_of(flow)} {flow.l7.http.code}, in {flow.l7.latency_ns / 1e6:.2f} ms",
            lambda text: text.startswith(f"GET {checks.ITEM} 200, in ") and not text.endswith(" 0.00 ms"),
        )
        refused = flow_pb2.FlowFilter(source_pod=[self._from], verdict=[flow_pb2.DROPPED], http_method=["DELETE"])
        await self._check_flow(
            checks.FLOW_REFUSED,
            refused,
            lambda flow: f"{path_of(flow)} DROPPED, {', '.join(each.name for each in flow.ingress_denied_by)}",
        )
        dropped = flow_pb2.FlowFilter(source_pod=[self._from], verdict=[flow_pb2.DROPPED])
        await self._check_flow(
            checks.FLOW_HTTP2,
            dropped,
            lambda flow: flow.Summary.partition("; ")[2],
            lambda text: text.startswith(checks.FLOW_HTTP2.expected),
        )

    async def _check_dns_flows(self) -> None:
        answers = flow_pb2.FlowFilter(destination_pod=[self._from], dns_query=[f"^{re.escape(checks.ALLOWED_NAME)}"])
        await self._check_flow(
            checks.FLOW_ANSWER,
            answers,
            lambda flow: f"{flow.l7.dns.query} {', '.join(flow.l7.dns.ips)}, in {flow.l7.latency_ns / 1e6:.2f} ms",
            lambda text: text.startswith(f"{checks.ALLOWED_NAME}. {WORLD4}, in ") and not text.endswith(" 0.00 ms"),
        )
        aliases = flow_pb2.FlowFilter(destination_pod=[self._from], dns_query=[f"^{re.escape(checks.ALIAS)}"])
        await self._check_flow(
            checks.FLOW_ALIAS, aliases, lambda flow: f"{flow.l7.dns.query} over {', '.join(flow.l7.dns.cnames)}"
        )
        refused = flow_pb2.FlowFilter(source_pod=[self._from], verdict=[flow_pb2.DROPPED], dns_query=["internal"])
        await self._check_flow(
            checks.FLOW_FORBIDDEN,
            refused,
            lambda flow: f"{flow.l7.dns.query} {flow_pb2.Verdict.Name(flow.verdict)}",
        )

    async def _check_tls_flows(self) -> None:
        for check, verdict in (
            (checks.FLOW_SERVER, flow_pb2.FORWARDED),
            (checks.FLOW_SERVER_FORBIDDEN, flow_pb2.DROPPED),
        ):
            wanted = flow_pb2.FlowFilter(source_pod=[self._from], verdict=[verdict], destination_port=["443"])
            await self._check_flow(
                check,
                wanted,
                lambda flow: f"{_server(flow)} {flow_pb2.Verdict.Name(flow.verdict)}" if _server(flow) else "",
            )


def _server(flow: flow_pb2.Flow) -> str:
    """The server that a TLS client named, of a flow that says so."""
    _, said, name = flow.Summary.partition("TLS server name ")
    return name.split(";")[0] if said else ""
