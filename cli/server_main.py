"""Run the embedded Prefect server, as `python -m cli.server_main DESCRIPTOR`.

The command starts this process before it imports Prefect itself, so that both imports run at the same time. The server
opens the database only after a line of JSON on stdin, a `Start`. If stdin ends first, the process ends.

DESCRIPTOR: an inherited socket, bound to the port of the server. It accepts connections when the server answers.
"""

import gc
import json
import socket
import sys
from typing import TypedDict

# Prefixes of the routers that answer the requests of a run.
FIRST_ROUTERS = ("/csrf-token", "/admin", "/flows", "/flow_runs", "/artifacts", "/logs", "/events")


class Start(TypedDict):
    """The order to start. ``migrate``: False if the database has the revision of the installed Prefect."""

    migrate: bool


def main() -> None:
    """Import the server, wait for the order to start, and serve until SIGTERM."""
    gc.disable()  # the collector would scan the modules several times: 0.4 s
    import uvicorn
    from prefect.server.api import server as api
    from prefect.settings import PREFECT_API_DATABASE_MIGRATE_ON_START, temporary_settings

    # FastAPI builds the routes of each router until one matches the first request: 0.2 s for those that no run uses.
    routers = sorted(api.API_ROUTERS, key=lambda router: router.prefix not in FIRST_ROUTERS)
    api.API_ROUTERS = tuple(routers)  # type: ignore[assignment]
    # Ephemeral is Prefect's word for a server without the UI, whose only services record events and task runs.
    server = uvicorn.Server(uvicorn.Config(api.create_app(ephemeral=True), log_level="error", lifespan="on"))
    line = sys.stdin.readline()
    if not line:
        return
    start: Start = json.loads(line)
    gc.freeze()
    gc.enable()
    updates = {} if start["migrate"] else {PREFECT_API_DATABASE_MIGRATE_ON_START: False}
    with temporary_settings(updates), socket.socket(fileno=int(sys.argv[1])) as listener:
        server.run(sockets=[listener])
    if not server.started:
        sys.exit("The server did not start.")


if __name__ == "__main__":
    main()
