"""What the suite's servers run: `python3 -c <this text> NAME HTTP_PORTS UDP_PORT [ADDRESS…]`, standard library only.

HTTP tells who answered and who asked; /size/N answers N bytes. UDP answers as many bytes as it got, behind the same
two words. TLS (HTTP behind it) is served on 8443 where the variable TLS_PEM holds a certificate and its key.
"""

import http.server
import os
import socket
import ssl
import sys
import tempfile
import threading

NAME = sys.argv[1] if len(sys.argv) > 1 else socket.gethostname()
PORTS = [int(port) for port in (sys.argv[2] if len(sys.argv) > 2 else "8080").split(",")]
UDP_PORT = int(sys.argv[3]) if len(sys.argv) > 3 else 0
ADDRESSES = sys.argv[4:] or ["::"]


def plain(address: str) -> str:
    """An address without the prefix that v4 clients have on a v6 socket."""
    return address.removeprefix("::ffff:")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every method alike."""

    protocol_version = "HTTP/1.1"
    server_version = "ciliate-echo"

    def answer(self) -> None:
        """Who I am, who you are, what you asked."""
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = f"server: {NAME}\nclient: {plain(self.client_address[0])}\n{self.command} {self.path}\n".encode()
        if self.path.startswith("/size/"):
            body = b"x" * int(self.path.rpartition("/")[2]) + b"\n" + body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815  http.server's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Takes IPv4 clients on an IPv6 socket as well."""

    request_queue_size = 128

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(address: str, port: int, context: ssl.SSLContext | None = None) -> None:
    """One HTTP server in a thread."""
    Server.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = Server((address, port), Handler)
    if context is not None:
        # The handshake belongs to the request's thread: a client that says nothing must not hold up the others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever).start()


def echo(address: str, port: int) -> None:
    """UDP, in this thread."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as server:
        if ":" in address:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((address, port))
        while True:
            data, client = server.recvfrom(65536)
            head = f"server: {NAME} client: {plain(client[0])}\n".encode()
            server.sendto(head + data[len(head) :], client)


def tls_context(pem: str) -> ssl.SSLContext:
    """From certificate and key in one text."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


if __name__ == "__main__":
    for where in ADDRESSES:
        if os.environ.get("TLS_PEM"):
            serve(where, 8443, tls_context(os.environ["TLS_PEM"]))
        for number in PORTS:
            serve(where, number)
    if UDP_PORT:
        echo(ADDRESSES[0], UDP_PORT)
