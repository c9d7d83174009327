import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FIRST_ANSWERS: dict[str, tuple[int, object]] = {}  # by the key, as a real airline keeps them


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        seat = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_sold_out = seat["flight"] == "sold out"
        answer = (422, "sold out") if is_sold_out else (201, {"id": len(FIRST_ANSWERS) + 1})
        self._answer(*FIRST_ANSWERS.setdefault(self.headers["Idempotency-Key"], answer))

    def do_DELETE(self) -> None:
        self._answer(204)

    def _answer(self, status: int, content: object = None) -> None:
        self.send_response(status)
        self.end_headers()
        if status != 204:
            self.wfile.write(json.dumps(content).encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8070), Handler).serve_forever()
