"""Runs the declared checks (`checks.py`) against a sandbox: both clients, every way to the web app, policy changes."""

from __future__ import annotations

import asyncio
import time

from services.common.pb.flow import flow_pb2
from services.model.objects import ObjectKey
from services.sandbox import checks
from services.sandbox.checking import Checking, path_of
from services.sandbox.checks import Check, Result
from services.sandbox.kubelet import RunningPod
from services.sandbox.netns import WORLD4
from services.sandbox.probes import CLOSED, OpenConnection, curl, web_server
from services.sandbox.supervisor import Sandbox


class Scenario(Checking):
    """Runs the checks against a sandbox in which the checks.example's pods are ready."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._frontend, self._visitor = self._pod("frontend"), self._pod("visitor")
        self._web = [pod for key, pod in sorted(self._kubelet.pods.items()) if key.name.startswith("my-webapp-")]

    async def run(self) -> list[Result]:
        """All checks, in the order of `checks.CHECKS`."""
        await self._wait_enforced()
        slots = asyncio.Semaphore(8)
        await asyncio.gather(
            *(
                self._ask(slots, check, client, way, method, path)
                for check, client, way, method, path in checks.client_checks()
            ),
            self._check_outside(),
            self._check_kept_alive(),
        )
        self._check_unseen()
        await self._check_flows()
        await self._check_changes()
        return self._in_order(checks.CHECKS)

    async def _wait_enforced(self) -> None:
        """Wait until both nodes know the addresses of all pods: the first packets must not race the set-up."""
        deadline = time.monotonic() + 10.0
        ways = [self._url(client, way, checks.ALLOWED_PATH) for client in (self._frontend,) for way in checks.WAYS]
        for url in ways:
            while (await curl(self._kubelet, self._frontend.key, "GET", url)).text != "200":
                if time.monotonic() > deadline:
                    return  # the checks will say what is wrong

    def _url(self, client: RunningPod, way: str, path: str) -> str:
        if way == "Service address":
            key = ObjectKey("Service", "default", checks.SERVICE)
            return f"http://{self._sandbox.store.objects[key]['spec']['clusterIP']}{path}"
        if way == "Service name":
            return f"http://{checks.SERVICE}{path}"
        node = client.document["spec"]["nodeName"]
        near = "same node" in way
        pod = next(pod for pod in self._web if (pod.document["spec"]["nodeName"] == node) is near)
        address = next(text for text in pod.addresses if (":" in text) is way.endswith("IPv6"))
        return f"http://[{address}]{path}" if ":" in address else f"http://{address}{path}"

    async def _ask(self, slots: asyncio.Semaphore, check: Check, client: str, way: str, method: str, path: str) -> None:
        pod = self._frontend if client == "frontend" else self._visitor
        async with slots:
            self._note_answer(check, await curl(self._kubelet, pod.key, method, self._url(pod, way, path)))

    def _check_unseen(self) -> None:
        """The web servers' own logs: what the kernel refused must not be in them."""
        seen: set[str] = set()
        for pod in self._web:
            log = self._sandbox.paths.pod(pod.key.namespace, pod.key.name) / "access.log"
            seen |= {" ".join(line.split()[1:3]) for line in log.read_text(encoding="utf-8").splitlines()}
        self._note(checks.UNSEEN, f"only {', '.join(sorted(seen))}" if seen else "nothing")

    async def _check_outside(self) -> None:
        async with web_server(self._kubelet, self._sandbox.topology.switch, WORLD4):
            pod = self._web[0].key
            self._note_answer(checks.OUTSIDE, await curl(self._kubelet, pod, "GET", f"http://{WORLD4}/"))
            status, output, _ = await self._kubelet.exec(pod, ["getent", "hosts", checks.SERVICE])
            self._note(checks.RESOLVES, output.split()[0] if status == 0 else f"nothing (status {status})", status == 0)

    async def _check_kept_alive(self) -> None:
        address = self._url(self._frontend, checks.WAYS[1], "").removeprefix("http://")
        connection = await OpenConnection.open(self._kubelet, self._frontend.key, address)
        try:
            answers = [
                (await connection.request("GET", path)).text for path in (checks.ALLOWED_PATH, checks.ALLOWED_PATH, "/")
            ]
        finally:
            await connection.close()
        self._note(checks.KEPT_ALIVE, ", ".join(answers))

    async def _check_flows(self) -> None:
        visitor, frontend = str(self._visitor.key.name), str(self._frontend.key.name)
        dropped = flow_pb2.FlowFilter(source_pod=[f"default/{visitor}"], verdict=[flow_pb2.DROPPED])
        await self._check_flow(checks.FLOW_DROPPED, dropped, lambda flow: _names(flow.ingress_denied_by))
        refused = flow_pb2.FlowFilter(source_pod=[f"default/{frontend}"], verdict=[flow_pb2.DROPPED], http_path=["^/$"])
        await self._check_flow(checks.FLOW_REFUSED, refused, _request)
        allowed = flow_pb2.FlowFilter(source_pod=[f"default/{frontend}"], verdict=[flow_pb2.FORWARDED])
        await self._check_flow(checks.FLOW_ALLOWED, allowed, lambda flow: _names(flow.ingress_allowed_by))

    async def _check_changes(self) -> None:
        """Delete the policy and apply it again, with connections left open across both."""
        policy = [each for each in checks.example() if each.key.name == checks.POLICY]
        self._sandbox.delete([each.key for each in policy])
        await asyncio.gather(
            self._check_soon(checks.FREE_VISITOR, self._visitor, "/"),
            self._check_soon(checks.FREE_FRONTEND, self._frontend, "/"),
        )
        opened = [await self._open(pod) for pod in (self._visitor, self._frontend, self._frontend)]
        try:
            self._sandbox.apply(policy)
            await asyncio.gather(
                self._check_soon(checks.AGAIN_VISITOR, self._visitor, "/"),
                self._check_soon(checks.AGAIN_FRONTEND, self._frontend, "/"),
            )
            requests = [opened[0].request("GET", "/"), opened[1].request("GET", "/")]
            visitor, frontend = await asyncio.gather(*requests)
            await self._check_open_allowed(opened[2])
            self._note(checks.OPEN_VISITOR, visitor.text)
            self._note(checks.OPEN_FRONTEND, frontend.text, frontend.text in {checks.REFUSED, CLOSED})
        finally:
            await asyncio.gather(*(each.close() for each in opened))

    async def _check_open_allowed(self, connection: OpenConnection) -> None:
        """The kernel has not seen how this connection began, so it may end it; the client's next one must work."""
        answer = await connection.request("GET", checks.ALLOWED_PATH)
        if answer.text != CLOSED:
            self._note(checks.OPEN_ALLOWED, answer.text, answer.text == "200")
            return
        again = await curl(
            self._kubelet, self._frontend.key, "GET", self._url(self._frontend, checks.WAYS[1], checks.ALLOWED_PATH)
        )
        self._note(checks.OPEN_ALLOWED, f"closed, {again.text}", again.text == "200")

    async def _open(self, pod: RunningPod) -> OpenConnection:
        """A connection to a web pod of the other node, used once so that it is established on both ends."""
        address = self._url(pod, checks.WAYS[1], "").removeprefix("http://")
        connection = await OpenConnection.open(self._kubelet, pod.key, address)
        await connection.request("GET", "/")
        return connection

    async def _check_soon(self, check: Check, pod: RunningPod, path: str) -> None:
        """Ask again and again until the answer is the expected one; started after the deadline it is too late."""
        begun, url = time.monotonic(), self._url(pod, checks.WAYS[1], path)
        while True:
            started = time.monotonic() - begun
            answer = await curl(self._kubelet, pod.key, "GET", url)
            if answer.text == check.expected or started > checks.CHANGE_SECONDS:
                break
        self._note(check, f"{answer.text}, after {started * 1000:.0f} ms", answer.text == check.expected)


def _names(policies: object) -> str:
    return ", ".join(each.name for each in policies)  # type: ignore[attr-defined]


def _request(flow: flow_pb2.Flow) -> str:
    return f"{path_of(flow)} {flow_pb2.Verdict.Name(flow.verdict)}"
