"""What explaining says of a request is what the kernel would: the readable model reads the same request as bytes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.calc.requests import meets
from services.policy.l7 import HeaderMatch, HttpRule, Request
from tests.datapath.http_model import allow_by, judge

NAMES = ["X-Tag", "x_tag", "x-tag", "Other", "Host"]
VALUES = ["", "blue", "b", "blue ", "a.example", "  blue"]
HEADERS = st.lists(st.tuples(st.sampled_from(NAMES[:4]), st.sampled_from(VALUES)), max_size=3).map(tuple)
REQUESTS = st.builds(
    Request,
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(["/", "/ok", "/ok?x=1"]),
    st.sampled_from(["a.example", "b.example", "a.example:80"]),
    HEADERS,
)
MATCHES = st.lists(
    st.builds(HeaderMatch, st.sampled_from(["X-Tag", "other", "Host"]), st.sampled_from([None, "blue", "a.example"])),
    max_size=2,
    unique=True,
).map(tuple)
RULES = st.builds(
    HttpRule,
    st.sampled_from([None, "GET", "G.*"]),
    st.sampled_from([None, "/ok", "/ok.*"]),
    st.sampled_from([None, "a[.]example", ".*"]),
    MATCHES,
)


def as_sent(request: Request) -> bytes:
    lines = [f"{request.method} {request.path} HTTP/1.1", f"Host: {request.host}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


@given(RULES, REQUESTS)
@settings(max_examples=600, deadline=None, derandomize=True)
def test_as_the_kernel_reads_it(rule: HttpRule, request: Request) -> None:
    allowed = judge(as_sent(request), allow_by(rule)).refused is None
    assert meets(rule, request) == allowed, (rule, as_sent(request))


def test_what_cannot_be_compiled_allows_nothing() -> None:
    request = Request("GET", "/", headers=(("X", "é"),))
    assert not meets(HttpRule(path="(?=x)"), Request("GET", "x"))
    assert not meets(HttpRule(headers=(HeaderMatch("X", "é"),)), request)
    assert not meets(HttpRule(headers=(HeaderMatch("X"),)), Request("GET", "/"))
