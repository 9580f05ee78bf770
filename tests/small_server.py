"""A small HTTP server in the test process that answers as a test says, well or badly, and notes what it was asked."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

MODEL = "letters"


def completion(body, *, log_probs=True, usage=True, texts=None):
    """What a server of OpenAI's API answers: letters that follow from the seed, each as likely as the others."""
    rng, choices = np.random.default_rng(body.get("seed", 0)), []
    for index in range(body.get("n", 1)):
        text = texts[index] if texts else "".join(map(chr, rng.integers(97, 123, size=body["max_tokens"])))
        said = {"tokens": list(text), "token_logprobs": [-np.log(26)] * len(text)} if log_probs else None
        choices.append({"index": index, "text": text, "logprobs": said, "finish_reason": "length"})
    tokens = sum(len(choice["text"]) for choice in choices)
    prompt = len(body.get("prompt", ""))
    total = {"usage": {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}}
    return {"choices": choices, **(total if usage else {})}


class SmallServer:
    """Answers with what `answer(path, body, call)` returns: JSON, or (status, text), or that and headers.

    Attributes:
        url: its address, to which it listens until `closed`.
        asked: path and body of each POST.
        headers: of each POST.
        answer: may be replaced at any time; sleeps, errors and half bodies are its own affair.
    """

    def __init__(self, answer):
        self.answer, self.asked, self.headers, self.lock = answer, [], [], threading.Lock()
        self.closed = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True  # or each answer takes 40 ms

            def log_message(self, *_):
                pass

            def do_GET(self):
                listed = {"data": [{"id": MODEL, "owned_by": "somebody"}]}
                self.reply(listed if self.path == "/v1/models" else (404, "<html>nothing here</html>"))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.asked.append((self.path, body))
                    server.headers.append(dict(self.headers))
                    call = len(server.asked)
                self.reply(server.answer(self.path, body, call))

            def reply(self, answer):
                status, text, headers = 200, answer, {}
                if isinstance(answer, tuple):
                    status, text, *rest = answer
                    headers = rest[0] if rest else {}
                content = (text if isinstance(text, str) else json.dumps(text)).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(content), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(content)
                self.close_connection = "Content-Length" in headers  # the body was to be longer

            def handle(self):
                try:
                    super().handle()
                except OSError:  # whoever asked has gone
                    self.close_connection = True

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/v1"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def never(self):
        """Keep whoever asks waiting until the server is closed."""
        self.closed.wait(60)
        return {}


@contextmanager
def serving(answer=lambda path, body, call: completion(body)):
    server = SmallServer(answer)
    try:
        yield server
    finally:
        server.closed.set()
        server.httpd.shutdown()
        server.httpd.server_close()


def slowly(seconds):
    """An answer that takes its time."""

    def answer(path, body, call):
        time.sleep(seconds)
        return completion(body)

    return answer
