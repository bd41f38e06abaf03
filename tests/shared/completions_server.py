"""An OpenAI-compatible server on 127.0.0.1 around a transformers model, as vLLM's answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


@contextmanager
def completions_server(
    model: Any,
    tokenizer: Any,
    *,
    echo: bool = True,
    error: float = 0.0,
    max_model_len: Any = 4096,
    change: Callable[[dict[str, Any]], Any] = lambda choice: choice,
    failures: Sequence[int] = (),
    name: Any = "served",
    answering: Any = None,
) -> Iterator[str]:
    """The address of a server. echo: whether it gives the log-probabilities of a prompt. error: is
    added to each of them. change: of a choice, to what is sent in its place. failures: what the
    first requests get, an HTTP status, or 0 for a connection that is dropped. name: of the model.
    answering: the model that an answer names.
    """
    lock = threading.Lock()
    ahead = list(failures)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            entry = {"id": name, "object": "model", "max_model_len": max_model_len}
            self.answer({"data": [entry]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert request["model"] == "served" and self.path == "/v1/completions"
            if ahead:
                status = ahead.pop(0)
                if status:
                    self.send_error(status)
                return
            with lock, torch.no_grad():
                choices = []
                for index, tokens in enumerate(request["prompt"]):
                    choices.append(change({"index": index} | self.choice(tokens, request)))
            self.answer({"choices": choices, "model": answering})

        def choice(self, tokens: list[int], request: dict[str, Any]) -> dict[str, Any]:
            inputs = torch.tensor([tokens])
            if not request.get("echo"):
                written = model.generate(
                    inputs, max_new_tokens=request["max_tokens"], do_sample=False
                )
                text = tokenizer.decode(written[0, len(tokens) :], skip_special_tokens=True)
                for stop in request["stop"]:
                    text = text.partition(stop)[0]
                return {"text": text}
            if not echo:
                return {"text": "", "logprobs": None}
            logs = model(inputs).logits[0].float().log_softmax(-1)
            own = [None]
            top: list[Any] = [None]
            for place, token in enumerate(tokens[1:]):
                own.append(float(logs[place, token]) + error)
                best = int(logs[place].argmax())
                top.append({str(best): float(logs[place, best]) + error})
            own.append(float(logs[-1].max()))  # of the one token that is written
            top.append({"written": own[-1]})
            return {"text": "", "logprobs": {"token_logprobs": own, "top_logprobs": top}}

        def answer(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
