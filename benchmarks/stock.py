"""`python -m benchmarks.stock`: LitServe's own endpoint with a predict that answers at once, as its pages show it.

https://lightning.ai/docs/litserve/features/batching
"""

import argparse
from typing import Any

import litserve

_ANSWER = {
    "label": "positive",
    "score": 0.982,
    "scores": {"negative": 0.018, "positive": 0.982},
    "adapter": "a00@1",
    "experiment": None,
    "arm": None,
    "tokens": 11,
    "truncated": False,
    "request_id": "0123456789abcdef0123456789abcdef",
}


class StockApi(litserve.LitAPI):  # type: ignore[misc]
    """Decode, predict a batch, encode."""

    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request["text"]

    def predict(self, x: list[str]) -> list[dict[str, Any]]:
        return [_ANSWER] * len(x)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--max-batch-size", type=int, required=True)
    arguments.add_argument("--batch-timeout-s", type=float, required=True)
    arguments.add_argument("--fast-queue", action="store_true")
    arguments.add_argument("--api-servers", type=int, default=1)
    given = arguments.parse_args()
    api = StockApi(max_batch_size=given.max_batch_size, batch_timeout=given.batch_timeout_s, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=given.fast_queue, timeout=False)
    server.run(
        host="127.0.0.1",
        port=given.port,
        num_api_servers=given.api_servers,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
