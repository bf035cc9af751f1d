"""The servers of the HTTP bench: nginx as the web server, nginx and haproxy in front of it with policy's rules."""

from __future__ import annotations

from pathlib import Path

PATH = "/api/v1/users"
BODY = 1 << 20
WEB, HAPROXY, NGINX, SINK = 80, 8080, 9080, 79
"""First ports of the servers; that many rules are enforced on the ports that follow. SINK answers uploads when the web
server has read them to their end: one that answers first measures something else."""
SIZES = (1, 100, 1000)


def rules(count: int) -> list[tuple[str, str]]:
    """(method, path) that are allowed; those that the bench asks for come last."""
    others = [("GET", f"/api/v1/item{number:04}") for number in range(count - 1)]
    return [*others, ("GET", PATH), ("POST", "/up"), ("GET", "/down")]


WEB_CONF = """
worker_processes 1; daemon off; master_process off; pid {folder}/{name}.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300; large_client_header_buffers 4 32k;
  client_max_body_size 0; client_body_buffer_size 2m; sendfile on;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  {servers}
}}
"""
WEB_SERVER = """
  server {{ listen 127.0.0.1:{sink}; location / {{ return 200 "thanks\\n"; }} }}
  server {{
    {listen}
    location / {{ return 200 "hello from the web app\\n"; }}
    location /up {{
      proxy_pass http://127.0.0.1:{sink}; proxy_pass_request_body off; proxy_set_header Content-Length "";
      proxy_http_version 1.1; proxy_set_header Connection "";
    }}
    location /down {{ root {folder}; }}
  }}
"""
PROXY_SERVER = """
  server {{
    listen {port};
    {locations}
    location / {{ return 403; }}
  }}
"""
PROXY_LOCATION = """
    location = {path} {{
      limit_except {method} {{ deny all; }}
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
"""
HAPROXY_CONF = """
global
  nbthread 1
  tune.bufsize 32768
defaults
  mode http
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
{frontends}
backend app
  server app 127.0.0.1:80
"""
FRONTEND = """
frontend web{port}
  bind :{port}
  acl gets path -f {folder}/get{count}.txt
  acl posts path -f {folder}/post{count}.txt
  http-request deny unless METH_GET gets or METH_POST posts
  default_backend app
"""


def write_configurations(folder: Path) -> None:
    """nginx as the web server and as a proxy, and haproxy, with the same rules on one port per number of rules."""
    listen = " ".join(f"listen {WEB + i};" for i in range(len(SIZES)))
    web = WEB_SERVER.format(listen=listen, folder=folder, sink=SINK)
    (folder / "web.conf").write_text(WEB_CONF.format(folder=folder, name="web", servers=web))
    proxies, frontends = ["upstream app { server 127.0.0.1:80; keepalive 128; }"], []
    for i, count in enumerate(SIZES):
        locations = "".join(PROXY_LOCATION.format(method=method, path=path) for method, path in rules(count))
        proxies.append(PROXY_SERVER.format(port=NGINX + i, locations=locations))
        frontends.append(FRONTEND.format(port=HAPROXY + i, folder=folder, count=count))
        for method in ("GET", "POST"):
            paths = "\n".join(path for each, path in rules(count) if each == method)
            (folder / f"{method.lower()}{count}.txt").write_text(paths + "\n")
    (folder / "proxy.conf").write_text(WEB_CONF.format(folder=folder, name="proxy", servers="".join(proxies)))
    (folder / "haproxy.cfg").write_text(HAPROXY_CONF.format(frontends="".join(frontends)))
    (folder / "down").write_bytes(b"x" * BODY)
