#!/usr/bin/env python3
"""A server with S3's interface for benchmarks: objects in memory, every request counted, a network that takes its time.

It keeps `If-None-Match: *`, knows multipart uploads and believes every signature. One process serves it three ways:
plain, over TLS, and over TLS behind a network with a round trip of so many milliseconds, which delays what really
passes: a connection costs one round trip, a TLS handshake another, each request one more.

    benches/bucket.py CERTIFICATE KEY ROUND_TRIP_MS

Prints the three ports, and ends when its input does. `GET /-/counts` gives requests and bytes of bodies and counts from
zero again, `POST /-/clear` removes every object, and
`POST /-/forget/FOLDER/` those of a folder.
"""

import asyncio
import collections
import hashlib
import http.server
import json
import os
import re
import ssl
import sys
import threading
import urllib.parse
from xml.sax.saxutils import escape

PIECE = 256 << 10
# What a connection's way holds in each direction: 20 ms at 3 GB/s.
IN_FLIGHT = 64 << 20


class Objects:
    """All objects by path, and what was asked."""

    def __init__(self):
        self.lock = threading.Lock()
        self.clear()
        self.counts = collections.Counter()

    def clear(self):
        self.objects, self.uploads = {}, {}

    def forget(self, folder):
        with self.lock:
            self.objects = {key: body for key, body in self.objects.items() if not key.startswith(folder)}

    def count(self, **numbers):
        with self.lock:
            self.counts.update(numbers)

    def take_counts(self):
        with self.lock:
            taken, self.counts = dict(self.counts), collections.Counter()
        return taken


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    objects = None
    # A reply's head and body in one write.
    wbufsize = 1 << 16

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY

    def do_any(self):
        path, _, query = self.path.partition("?")
        self.key, self.query = urllib.parse.unquote(path), dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.key.startswith("/-/"):
            return self.about()
        self.objects.count(**{self.command: 1}, requests=1, sent=len(self.body))
        getattr(self, "on_" + self.command.lower())()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_any

    def about(self):
        if self.key == "/-/clear":
            self.objects.clear()
        if self.key.startswith("/-/forget/"):
            self.objects.forget(self.key.removeprefix("/-/forget"))
        self.reply(200, json.dumps(self.objects.take_counts()).encode(), counted=False)

    def reply(self, status, body=b"", counted=True, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            if counted:
                self.objects.count(received=len(body))
        self.wfile.flush()

    def error(self, status, code):
        self.reply(status, f"<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>".encode())

    def xml(self, text):
        self.reply(200, ('<?xml version="1.0" encoding="UTF-8"?>' + text).encode(), content_type="application/xml")

    def on_put(self):
        tag = f'"{hashlib.md5(self.body, usedforsecurity=False).hexdigest()}"'
        if "uploadId" in self.query:
            self.objects.uploads[self.query["uploadId"]][int(self.query["partNumber"])] = self.body
            return self.reply(200, ETag=tag)
        if self.headers.get("if-none-match") == "*" and self.key in self.objects.objects:
            return self.error(412, "PreconditionFailed")
        with self.objects.lock:
            self.objects.objects[self.key] = self.body
        self.reply(200, ETag=tag)

    def on_post(self):
        if "uploads" in self.query:
            number = os.urandom(8).hex()
            self.objects.uploads[number] = {}
            return self.xml(f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>")
        if "uploadId" in self.query:
            parts = self.objects.uploads.pop(self.query["uploadId"])
            with self.objects.lock:
                self.objects.objects[self.key] = b"".join(parts[number] for number in sorted(parts))
            return self.xml('<CompleteMultipartUploadResult><ETag>"whole"</ETag></CompleteMultipartUploadResult>')
        keys = re.findall("<Key>(.*?)</Key>", self.body.decode())
        for key in keys:
            self.objects.objects.pop(f"{self.key.rstrip('/')}/{key}", None)
        deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self.xml(f"<DeleteResult>{deleted}</DeleteResult>")

    def on_delete(self):
        self.objects.objects.pop(self.key, None)
        self.reply(204)

    def on_head(self):
        self.on_get()

    def on_get(self):
        if self.key.count("/") < 2 or self.key.endswith("/") and self.key.count("/") == 2:
            return self.listing()
        body = self.objects.objects.get(self.key)
        if body is None:
            return self.error(404, "NoSuchKey")
        told = {"ETag": '"whole"', "Last-Modified": "Sat, 01 Jan 2028 00:00:00 GMT"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if not asked:
            return self.reply(200, body, **told)
        first, last = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
        if first >= len(body):
            return self.error(416, "InvalidRange")
        self.reply(206, body[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(body)}", **told)

    def listing(self):
        bucket = "/" + self.key.strip("/") + "/"
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        after = self.query.get("continuation-token") or self.query.get("start-after") or ""
        names = {}
        with self.objects.lock:
            keys = [(key[len(bucket) :], len(body)) for key, body in self.objects.objects.items() if key.startswith(bucket + prefix)]
        for key, size in keys:
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            names[prefix + head + found if found else key] = None if found else size
        page = sorted(name for name in names if name > after)
        more, page = len(page) > 1000, page[:1000]
        text = ""
        for name in page:
            if names[name] is None:
                text += f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            else:
                text += (
                    f"<Contents><Key>{escape(name)}</Key><LastModified>2028-01-01T00:00:00.000Z</LastModified>"
                    f'<ETag>"whole"</ETag><Size>{names[name]}</Size></Contents>'
                )
        text += f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        if more:
            text += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        self.xml(f"<ListBucketResult>{text}</ListBucketResult>")


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection; over TLS the thread also shakes hands, so that nobody waits for another's."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, objects, tls=None):
        self.tls = tls
        super().__init__(("127.0.0.1", 0), type("Bound", (Handler,), {"objects": objects}))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def finish_request(self, request, client_address):
        if self.tls:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, *_):
        pass  # A client that breaks off is its own affair.


class Network:
    """A TCP port behind a network with a round trip of `seconds`; bytes are not counted, only kept back."""

    def __init__(self, port, seconds):
        self.target, self.way = port, seconds / 2

    async def listen(self):
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0, limit=PIECE)
        return server, server.sockets[0].getsockname()[1]

    async def accept(self, reader, writer):
        # The kernel has answered the connection already: what comes first waits for the round trip that it would have cost.
        opened = asyncio.get_running_loop().time() + 2 * self.way
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target, limit=PIECE)
        await asyncio.gather(self.pass_on(reader, there_writer, opened), self.pass_on(there_reader, writer, 0.0), return_exceptions=True)
        writer.close()
        there_writer.close()

    async def pass_on(self, reader, writer, opened):
        loop, pieces, room = asyncio.get_running_loop(), asyncio.Queue(), asyncio.Semaphore(IN_FLIGHT // PIECE)

        async def read():
            while piece := await reader.read(PIECE):
                await room.acquire()
                pieces.put_nowait((max(loop.time(), opened) + self.way, piece))
            pieces.put_nowait((0.0, b""))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, piece = await pieces.get()
                if not piece:
                    break
                if (left := due - loop.time()) > 0:
                    await asyncio.sleep(left)
                writer.write(piece)
                await writer.drain()
                room.release()
            writer.write_eof() if writer.can_write_eof() else None
        finally:
            reading.cancel()


def main():
    certificate, key, round_trip = sys.argv[1:]
    objects = Objects()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    plain, secure = Server(objects), Server(objects, tls)

    async def serve():
        server, port = await Network(secure.server_port, float(round_trip) / 1000).listen()
        print(plain.server_port, secure.server_port, port, flush=True)
        async with server:
            await server.serve_forever()

    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    asyncio.run(serve())


if __name__ == "__main__":
    main()
