"""Test access to the services of `up`: without the password, by job variables, by files, with `--no-auth`."""

import json
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from cli.prefect_toml import write_prefect_toml
from tests.deployed.test_up import Checkout, stopped_at_the_end

OPEN_TO_ALL = {("GET", "/health"), ("GET", "/ready")}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """Return a checkout whose services run."""
    with stopped_at_the_end(Checkout(tmp_path_factory.mktemp("access") / "checkout")) as checkout:
        checkout.up()
        yield checkout


@pytest.fixture
def api(checkout: Checkout) -> Iterator[httpx.Client]:
    with checkout.api() as client:
        yield client


def password_of(checkout: Checkout) -> str:
    return (checkout.services / "password").read_text().strip()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer x"}])
def test_client_without_the_password_gets_only_health(api: httpx.Client, headers: dict[str, str]) -> None:
    paths = list(httpx.get(str(api.base_url.copy_with(path="/openapi.json"))).json()["paths"])
    assert len(paths) > 100
    paths += [
        "/docs",
        "/openapi.json",
        "/redoc",
        "/version",
        "/admin/settings",
        "/metrics",
        "/static/",
        "//health",
        "/",
    ]
    answers = {}
    with httpx.Client(base_url=str(api.base_url), timeout=120, headers=headers) as stranger:
        for path in paths:
            address = path.replace("{", "").replace("}", "")
            for method in METHODS:
                response = stranger.request(method, address, json={} if method in ("POST", "PUT", "PATCH") else None)
                if response.status_code not in (401, 403):
                    answers[method, path] = response.status_code
    assert answers == dict.fromkeys(OPEN_TO_ALL, 200)


SOCKETS = (
    "events/in",
    "events/out",
    "logs/out",
    "task_runs/subscriptions/scheduled",
    "work_pools/fashion-ann-cpu/workers/connect",
)


@pytest.mark.parametrize("path", SOCKETS)
@pytest.mark.parametrize("token", [None, "", "admin:", "wrong"])
@pytest.mark.parametrize("protocols", [None, [Subprotocol("prefect")]], ids=["old client", "prefect"])
def test_websocket_without_the_password_is_closed(
    checkout: Checkout, api: httpx.Client, path: str, token: str | None, protocols: list[Subprotocol] | None
) -> None:
    address = str(api.base_url.copy_with(scheme="ws")) + path
    received: list[str | bytes] = []
    with pytest.raises((ConnectionClosed, InvalidStatus)), connect(address, subprotocols=protocols) as socket:
        socket.send(json.dumps({"type": "auth", "token": token}))
        while True:
            received.append(socket.recv(timeout=60))
    assert received == []


def test_websocket_with_the_password_is_accepted(checkout: Checkout, api: httpx.Client) -> None:
    address = str(api.base_url.copy_with(scheme="ws")) + "events/out"
    with connect(address, subprotocols=[Subprotocol("prefect")]) as socket:
        socket.send(json.dumps({"type": "auth", "token": password_of(checkout)}))
        assert json.loads(socket.recv(timeout=60)) == {"type": "auth_success"}


def test_only_the_owner_reads_the_password(checkout: Checkout) -> None:
    password = password_of(checkout)
    for path in (checkout.services / "password", checkout.folder / "prefect.toml"):
        assert (password in path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (True, 0o600)
    files = [path for path in checkout.services.rglob("*") if path.is_file()]
    assert [path for path in files if password.encode() in path.read_bytes()] == [checkout.services / "password"]
    for process in checkout.processes():
        assert password not in " ".join(process.cmdline())
    for command in ("status", "up", "doctor"):
        done = checkout.run(command, "--json")
        assert password not in done.stdout + done.stderr


def test_status_and_doctor_report_access(checkout: Checkout, api: httpx.Client) -> None:
    status, port = checkout.services_of("status"), api.base_url.port
    origins = [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]
    expected = {"password": True, "csrf": True, "origins": origins, "addresses": [f"127.0.0.1:{port}"]}
    assert status["access"] == expected
    assert status["password_file"] == str(checkout.services / "password")
    (check,) = (check for check in json.loads(checkout.run("doctor", "--json").stdout) if check["name"] == "prefect")
    assert check["cure"] == ""
    for part in ("password required", "CSRF protection on", *origins, f"listens on: 127.0.0.1:{port}"):
        assert part in check["says"]


def test_request_without_a_csrf_token_is_rejected(checkout: Checkout, api: httpx.Client) -> None:
    user, password = password_of(checkout).split(":")
    answer = httpx.post(f"{api.base_url}flow_runs/count", json={}, auth=(user, password))
    assert (answer.status_code, answer.json()["detail"]) == (403, "Missing CSRF token.")


@pytest.mark.parametrize(
    "variables",
    [
        {"command": "touch pwned"},
        {"working_dir": "/"},
        {"env": {"LD_PRELOAD": "x.so"}},
        {"env": {"PYTHONPATH": "/"}},
        {"env.PYTHONPATH": "/"},
        {"env": "x"},
        {"name": "x"},
        {"anything": 1},
    ],
    ids=str,
)
def test_other_job_variables_are_refused(api: httpx.Client, variables: dict[str, Any]) -> None:
    deployment = api.get("/deployments/name/verify-store/nightly").json()
    body = {"state": {"type": "SCHEDULED"}, "job_variables": variables}
    answer = api.post(f"/deployments/{deployment['id']}/create_flow_run", json=body)
    assert (answer.status_code, "not allowed" in answer.text or "not valid" in answer.text) == (422, True)


def end_of(api: httpx.Client, path: str, body: dict[str, Any]) -> str:
    """Create a flow run, and return the type of its final state."""
    run = f"/flow_runs/{api.post(path, json=body).raise_for_status().json()['id']}"
    deadline = time.monotonic() + 600
    while (state := str(api.get(run).json()["state_type"])) not in ("COMPLETED", "FAILED", "CRASHED"):
        assert time.monotonic() < deadline, state
        time.sleep(0.5)
    return state


def test_worker_runs_no_command_of_a_flow_run(checkout: Checkout, api: httpx.Client) -> None:
    """POST /flow_runs does not check job variables. The worker ignores those that the pool does not have."""
    mark = checkout.folder.parent / f"{uuid.uuid4()}"
    deployment = api.get("/deployments/name/verify-store/nightly").json()
    body = {
        **{"flow_id": deployment["flow_id"], "deployment_id": deployment["id"], "work_pool_name": "fashion-ann-cpu"},
        "job_variables": {"command": f"touch {mark}", "working_dir": str(checkout.folder)},
        "state": {"type": "SCHEDULED"},
    }
    assert (end_of(api, "/flow_runs/", body), mark.exists()) == ("COMPLETED", False)


def test_client_with_the_password_can_run_code(checkout: Checkout, api: httpx.Client) -> None:
    mark = checkout.folder.parent / f"{uuid.uuid4()}"
    deployment = api.get("/deployments/name/verify-store/nightly").json()
    body = {
        **{"name": "other", "flow_id": deployment["flow_id"], "work_pool_name": "fashion-ann-cpu"},
        "entrypoint": deployment["entrypoint"],
        "pull_steps": [
            *deployment["pull_steps"],
            {"prefect.deployments.steps.run_shell_script": {"script": f"touch {mark}"}},
        ],
    }
    other = api.post("/deployments/", json=body).raise_for_status().json()["id"]
    end_of(api, f"/deployments/{other}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    assert mark.exists()


def test_deploy_restricts_the_pools_of_an_earlier_version(checkout: Checkout, api: httpx.Client) -> None:
    from prefect.workers.process import ProcessWorker

    pool, variables = "/work_pools/fashion-ann-gpu", api.get("/variables/name/fashion_ann_deployed_work_pools").json()
    wanted = api.get(pool).json()["base_job_template"]
    assert "command" not in wanted["job_configuration"]
    earlier = {name: dict(part) for name, part in variables["value"].items()}
    del earlier["work pool fashion-ann-gpu"]["base_job_template"]
    api.patch(f"/variables/{variables['id']}", json={"value": earlier}).raise_for_status()
    edited = {"base_job_template": ProcessWorker.get_default_base_job_template(), "concurrency_limit": 3}
    api.patch(pool, json=edited).raise_for_status()
    assert checkout.run("deploy").returncode == 0
    restricted = api.get(pool).json()
    assert (restricted["base_job_template"], restricted["concurrency_limit"]) == (wanted, 3)


@pytest.mark.parametrize(("same", "received"), [(False, None), (True, "Basic YWRtaW46c2VjcmV0")])
def test_other_server_does_not_get_the_password(tmp_path: Path, same: bool, received: str | None) -> None:
    headers: list[str | None] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server calls this name
            headers.append(self.headers["Authorization"])
            self.send_error(404)

        def log_message(self, format: str, *arguments: object) -> None:
            return

    checkout = Checkout(tmp_path / "checkout")
    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port if same else 9
        write_prefect_toml(checkout.folder / "prefect.toml", f"http://127.0.0.1:{port}/api", "admin:secret")
        done = checkout.run("deploy", PREFECT_API_URL=f"http://localhost:{server.server_port}/api")
        server.shutdown()
    assert (done.returncode, headers) == (1, [received])


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({"PREFECT_SERVER_API_HOST": "0.0.0.0"}, "loopback"),  # noqa: S104
        ({"PREFECT_SERVER_API_HOST": "192.0.2.1"}, "loopback"),
        ({"PREFECT_SERVER_API_AUTH_STRING": "user:secret"}, "PREFECT_SERVER_API_AUTH_STRING"),
    ],
)
def test_no_auth_is_refused_with(tmp_path: Path, variables: dict[str, str], part: str) -> None:
    checkout = Checkout(tmp_path / "checkout")
    done = checkout.run("up", "--no-auth", **variables)
    assert (done.returncode, part in done.stderr, "secret" in done.stderr) == (2, True, False)
    assert not checkout.services.exists()


def test_no_auth_is_warned_about_and_ends_with_down(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    try:
        opened = checkout.run("up", "--no-auth", "--json")
        assert (opened.returncode, opened.stderr.count("warning")) == (0, 1)
        status = json.loads(opened.stdout)
        assert (status["access"]["password"], status["access"]["csrf"]) == (False, True)
        assert status["access"]["origins"] != ["*"]
        assert status["password_file"] is None
        assert httpx.get(f"{status['url']}/admin/version").status_code == 200
        # A server without a password, such as one of an earlier version, keeps running.
        again = checkout.run("up", "--json")
        assert (again.returncode, again.stderr.count("warning"), json.loads(again.stdout)) == (0, 1, status)
        # The next server has one, and the workers of the first are replaced.
        psutil.Process(status["services"][0]["pid"]).kill()
        closed = checkout.up()
        assert closed["access"]["password"]
        assert {service["pid"] for service in status["services"]}.isdisjoint(
            service["pid"] for service in closed["services"].values()
        )
        refused = checkout.run("up", "--no-auth")
        assert (refused.returncode, "fashion-ann down" in refused.stderr) == (1, True)
        kept = password_of(checkout)
        checkout.run("down")
        shutil.copymode(checkout.folder / "prefect.yaml", checkout.services / "password")
        # Clients of the user have a password: the server gets that one.
        own = checkout.run("up", "--json", PREFECT_API_AUTH_STRING="user:mine")
        assert (own.returncode, json.loads(own.stdout)["password_file"]) == (0, None)
        assert "auth_string" not in (checkout.folder / "prefect.toml").read_text()
        assert checkout.run("deploy", PREFECT_API_AUTH_STRING="user:mine").returncode == 0
        checkout.run("down")
        checkout.up()
        assert (password_of(checkout), stat.S_IMODE((checkout.services / "password").stat().st_mode)) == (kept, 0o600)
    finally:
        checkout.run("down")
        for process in checkout.processes():
            process.kill()
