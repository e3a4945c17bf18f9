"""A page of another origin against the server of `up`, and the operator's own login."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.deployed.test_up import Checkout, stopped_at_the_end

TIMEOUT = 60_000  # milliseconds

# Returns what the page could read of each attack.
ATTACK = """async ([api, id, client]) => {
  const read = {}
  const run = JSON.stringify({state: {type: 'SCHEDULED'}, job_variables: {command: 'touch pwned'}})
  const create = `${api}/deployments/${id}/create_flow_run`
  const authorization = {Authorization: 'Basic ' + btoa('admin:admin'), 'Content-Type': 'application/json'}
  const guess = {...authorization, 'Prefect-Csrf-Token': 'x', 'Prefect-Csrf-Client': client}
  const attempt = async (name, url, options) => {
    try {
      const answer = await fetch(url, options)
      if (answer.type !== 'opaque') read[name] = `${answer.status} ${await answer.text()}`
    } catch { }
  }
  const paths = [create, ...['flow_runs/filter', 'csrf-token?client=x', 'health'].map(path => `${api}/${path}`)]
  for (const mode of ['cors', 'no-cors'])
    for (const credentials of ['include', 'omit'])
      for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'])
        for (const type of [null, 'text/plain', 'application/x-www-form-urlencoded', 'application/json'])
          for (const path of paths) {
            const headers = type === null ? {} : {'Content-Type': type}
            const body = method === 'GET' ? undefined : run
            await attempt([method, path, mode, type], path, {mode, credentials, method, headers, body})
          }
  await attempt('guess', create, {method: 'POST', headers: guess, body: run})
  navigator.sendBeacon(create, new Blob([run], {type: 'text/plain'}))
  for (const path of ['events/in', 'events/out', 'logs/out', 'task_runs/subscriptions/scheduled'])
    for (const protocol of [[], ['prefect']])
      await new Promise(resolve => {
        const socket = new WebSocket(`${api.replace('http', 'ws')}/${path}`, protocol)
        socket.onopen = () => {
          socket.send(JSON.stringify({type: 'auth', token: null}))
          socket.send(JSON.stringify({event: 'pwned', resource: {'prefect.resource.id': 'pwned'}, id: client}))
        }
        socket.onmessage = message => { read[`websocket ${path} ${protocol}`] = message.data }
        socket.onclose = resolve
      })
  const form = document.createElement('form')
  Object.assign(form, {method: 'post', action: create, enctype: 'text/plain', target: api})
  const field = document.createElement('input')
  Object.assign(field, {name: '{"state": {"type": "SCHEDULED"}, "x": "', value: '"}'})
  form.append(field)
  const frame = document.createElement('iframe')
  frame.name = api
  document.body.append(frame, form)
  const loaded = new Promise(resolve => { frame.onload = resolve })
  form.submit()
  await loaded
  try { read.frame = frame.contentDocument.body.innerText } catch { }
  return read
}"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with stopped_at_the_end(Checkout(tmp_path_factory.mktemp("origin") / "checkout")) as checkout:
        checkout.up()
        yield checkout


@pytest.fixture(scope="module")
def foreign_port() -> Iterator[int]:
    """Return the port of a server with an empty page."""

    class EmptyPage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server calls this name
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><body>")

        def log_message(self, format: str, *arguments: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(TIMEOUT)
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_page_of_another_origin_reads_and_creates_nothing(
    checkout: Checkout, page: Page, foreign_port: int, host: str
) -> None:
    with checkout.api() as api:
        deployment = api.get("/deployments/name/verify-store/nightly").json()["id"]

        def content() -> list[Any]:
            events = {"filter": {"event": {"name": ["pwned"]}}}
            scheduled = {"flow_runs": {"deployment_id": {"any_": [deployment]}}}
            return [
                api.post("/flow_runs/count", json=scheduled).json(),
                api.post("/events/filter", json=events).json()["events"],
            ]

        before = content()
        page.goto(f"http://{host}:{foreign_port}/")
        address = str(api.base_url).rstrip("/")
        for target in (address, address.replace("127.0.0.1", "localhost")):
            assert page.evaluate(ATTACK, [target, deployment, "00000000-0000-4000-8000-000000000000"]) == {}
        assert content() == before


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_operator_logs_in_with_the_password(checkout: Checkout, page: Page, host: str) -> None:
    with checkout.api() as api:
        ui = f"http://{host}:{api.base_url.port}"
    page.goto(f"{ui}/deployments")
    field = page.locator("input[type=password]").first
    field.fill("admin:wrong")
    field.press("Enter")
    expect(field).to_be_visible()
    field.fill((checkout.services / "password").read_text().strip())
    field.press("Enter")
    expect(page.get_by_text("on-demand").first).to_be_visible(timeout=TIMEOUT)
    page.goto(f"{ui}/work-pools")
    switch = page.locator("[class*=work-pool-card], [class*=work-pools-page]").get_by_role("switch").first
    with page.expect_response(lambda response: response.request.method == "PATCH") as answer:  # needs a CSRF token
        switch.click()
    assert answer.value.ok
