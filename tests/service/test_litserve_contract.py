"""Each of LitServe's insides that `service/host.py` leans on, so that another version that moves one fails here."""

import inspect
from importlib.metadata import version

import litserve.connector
import litserve.loops.base
import litserve.loops.loops
import litserve.server
import pytest
from litserve import LitAPI, LitServer

from service.host import _LITSERVE_ROUTES, API_PATH, OwnEndpoints, WorkerLoop


def source(thing: object) -> str:
    return " ".join(inspect.getsource(thing).split())  # type: ignore[arg-type]


class Api(LitAPI):  # type: ignore[misc]
    pass


@pytest.fixture
def server() -> LitServer:
    return LitServer(
        Api(loop=WorkerLoop(), spec=OwnEndpoints()),
        accelerator="cpu",
        devices=1,
        timeout=False,
        healthcheck_path=_LITSERVE_ROUTES[1],
        info_path=_LITSERVE_ROUTES[2],
    )


def test_version() -> None:
    assert version("litserve") == "0.2.19"


def test_its_own_routes_are_the_ones_we_take_out(server: LitServer) -> None:
    paths = {route.path for route in server.app.router.routes}
    assert set(_LITSERVE_ROUTES) < paths
    assert paths - set(_LITSERVE_ROUTES) == {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}


def test_with_a_spec_it_makes_no_endpoint_and_asks_it_for_the_path(server: LitServer) -> None:
    assert server.lit_api.api_path == API_PATH
    assert API_PATH not in {route.path for route in server.app.router.routes}


def test_the_app_is_built_with_the_overridable_lifespan() -> None:
    assert "FastAPI(lifespan=self.lifespan" in source(LitServer.__init__)


def test_the_receiver_hands_payload_and_status_to_the_entry_of_a_uid() -> None:
    receiver = source(litserve.server.response_queue_to_buffer)
    assert "uid, (*response, response_type, worker_id) = result" in receiver
    assert "response_item = response_buffer.get(uid)" in receiver
    assert "response_item.response = response response_item.event.set()" in receiver
    assert 'name=f"response_queue_to_buffer-{app.response_queue_id}"' in source(LitServer.lifespan)
    assert "(uid, (response_data, status, response_type, self.worker_id)), consumer_id=response_queue_id" in source(
        litserve.loops.base.LitLoop.put_response
    )


def test_the_worker_is_set_up_and_then_loops_for_ever() -> None:
    worker = source(litserve.loops.loops.inference_worker)
    assert worker.index('os.environ["LITSERVE_WORKER_ID"]') < worker.index("lit_api.setup(device)")
    # Waits for a status alone, whatever has become of the process: `TonearmServer` looks at both.
    assert "exitcode" not in source(LitServer.verify_worker_status)
    assert "self.verify_worker_status()" in source(LitServer.run)
    assert "while True: self.run(" in source(litserve.loops.base._BaseLoop.__call__)


def test_what_the_drain_leans_on() -> None:
    shutdown = source(LitServer._perform_graceful_shutdown)
    assert shutdown.index("uw.terminate()") < shutdown.index("iw.terminate()")
    assert "uw.join(timeout=self.uvicorn_graceful_timeout)" in shutdown
    run = source(LitServer.run)
    assert "self._shutdown_event.wait()" in run
    assert run.index("configure_logging(") < run.index("self._init_manager(") < run.index("self._start_server(")
    assert "while not self._shutdown_event.is_set()" in source(LitServer._start_worker_monitoring)
    assert "time.sleep(self.monitor_internal)" in source(LitServer._start_worker_monitoring)
    assert "return dict(enumerate(workers))" in source(LitServer._start_server)


def test_gpus_are_counted_without_torch() -> None:
    assert "import torch" not in source(inspect.unwrap(litserve.connector.check_cuda_with_nvidia_smi))
