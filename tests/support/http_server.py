"""A small HTTP(S) server for tests that does exactly as it is told, and what a camera's certificate looks like."""

import asyncio
import datetime
import ipaddress
import ssl
from contextlib import asynccontextmanager

import av
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stream_sttm.sources.scene import Scene


class Site:
    """`pages[path]` is (status, headers, body), bytes, or `async def(request, writer)`; `seen` are all requests."""

    def __init__(self, scheme, address):
        self.scheme, self.address = scheme, address
        self.pages, self.seen = {}, []
        self.hangs_up_on_head = False

    def url(self, path, login=""):
        return f"{self.scheme}://{login}{self.address}{path}"

    async def answer(self, reader, writer):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.partition("\r\n")[0].split(" ")
            self.seen.append(head)
            page = self.pages.get(path.partition("?")[0], (404, [], b""))
            if method == "HEAD" and self.hangs_up_on_head:
                return
            if method == "HEAD":
                page = (200, [], b"")
            elif callable(page):
                await page(head, writer)
                return
            if isinstance(page, bytes):
                page = (200, [], page)
            status, headers, body = page
            asked = next((x for x in head.splitlines() if x.lower().startswith("range:")), None)
            if asked and status == 200 and "Accept-Ranges: bytes" in headers:
                first, _, last = asked.partition("=")[2].partition("-")
                body, status = body[int(first) : int(last) + 1 if last else None], 206
            lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *headers, "", ""]
            writer.write("\r\n".join(lines).encode() + (b"" if method == "HEAD" else body))
            await writer.drain()


@asynccontextmanager
async def site(host="127.0.0.1", certificate=None):
    """Yield a running Site on a free port of `host`, with TLS where a certificate file is given."""
    tls, tasks = None, set()
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)

    async def guarded(reader, writer):
        try:
            await served.answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    def accept(reader, writer):
        tasks.add(asyncio.create_task(guarded(reader, writer)))

    listener = await asyncio.start_server(accept, host, 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    served = Site("https" if tls else "http", f"{host}:{port}")
    try:
        yield served
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def write_certificate(path, *names):
    """Return a self-signed certificate and its key, for names and addresses, as one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "camera")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    called = []
    for name in names:
        try:
            called.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            called.append(x509.DNSName(name))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(called), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, *plain)
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def write_playlist(folder, *, seconds=4, size=96):
    """Return an HLS playlist with a segment a second of Scene(1), 10 frames each, closed; its path."""
    path = folder / "live.m3u8"
    options = {"hls_time": "1", "hls_list_size": "0"}
    with av.open(str(path), "w", format="hls", options=options) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = size
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 10
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "tune": "zerolatency"}
        for index in range(seconds * 10):
            image = Scene(1).render(index / 10, size)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path
