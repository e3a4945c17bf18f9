"""The commands for Prefect and this machine: `deploy`, `doctor`, `up`, `down` and `status`."""

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cli.arguments import Argument, Commands, counted, data_dir, print_result
from cli.printed_commands import program, runnable
from schemas.config import artifacts_folder, data_folder
from schemas.errors import DoctorFailed, NotRunning

if TYPE_CHECKING:
    from cli.doctor import Check
    from cli.services import Status

commands = Commands()


@commands.add(
    "deploy",
    Argument("--reset", action="store_true", help="overwrite what an operator changed on the server by our files"),
    help="apply the pools, deployments and automations of prefect.yaml to the Prefect API",
    description="Apply work pools, deployments with their schedules and triggers, and automations to the API of "
    "PREFECT_API_URL. A second call changes nothing. An operator's changes on the server, such as a pause, stay "
    "and are printed. FASHION_ANN_NOTIFY, a URL or TYPE/NAME of a block, receives notifications.",
    dataset=False,
    writes=False,
    when_stopped="The deployment may be incomplete. Run the same command again to complete it.",
)
def _deploy(options: argparse.Namespace) -> None:
    from cli.deploy import deploy_all

    report = deploy_all(reset=options.reset)
    result = "deployed" if report.changed else "nothing to do"
    rest = f", except for {counted(len(report.kept), 'difference')} above" if report.kept else ""
    line = f"{result}: pools, deployments and automations match prefect.yaml and cli/automations.py{rest}"
    print_result(
        options,
        {"deployed": True, "changed": report.changed, "kept": report.kept},
        [*report.changed, *report.kept, line],
    )


@commands.add(
    "doctor",
    data_dir("folder of the CSVs"),
    help="check Python, lock, GPU, Prefect, pools, database, schedules, disk, data, store and champion",
    description="Check the requirements of a run, one line each, with a fix for each failure. Changes nothing. "
    "Exit status 1 if a check fails. Warnings leave it at 0.",
    writes=False,
)
def _doctor(options: argparse.Namespace) -> None:
    from cli.doctor import examine

    checks = examine(artifacts_folder(options.artifacts_dir), data_folder(options.data_dir), options.dataset)
    print_result(options, [vars(check) for check in checks], _check_lines(checks))
    if broken := [check.name for check in checks if check.ok is False]:
        raise DoctorFailed(f"{', '.join(broken)} broken: see the fix under each item above.")


def _check_lines(checks: list["Check"]) -> Iterator[str]:
    for check in checks:
        state = "warn" if check.ok and check.cure else {True: "ok", False: "BROKEN", None: "-"}[check.ok]
        yield f"{state:<6}  {check.name:<9}  {check.says}"
        if check.cure:
            yield f"{'':>19}{check.cure}"


@commands.add(
    "up",
    Argument(
        "--no-auth",
        action="store_true",
        help="start a server without a password: each program and each user of this machine can run commands as you",
    ),
    help="start a Prefect server and one worker per pool on this machine, and deploy to it",
    description="Start a server on 127.0.0.1, pools, deployments, automations and one worker per pool. The server "
    "requires a password, which is random unless PREFECT_SERVER_API_AUTH_STRING is set. Running services are left as "
    "they are. They keep running after this command and its terminal end.",
    dataset=False,
    when_stopped="Started services keep running. `fashion-ann up` starts the rest, `fashion-ann down` stops them.",
)
def _up(options: argparse.Namespace) -> None:
    from cli.services import up

    status = up(artifacts_folder(options.artifacts_dir), no_auth=options.no_auth)
    if options.no_auth or (status.access and not status.access.password):
        print(
            f"{options.prog}: warning: {status.url} requires no password: each program and each user of this machine "
            + runnable("can run commands as you. `fashion-ann down`, then `fashion-ann up` starts it with one."),
            file=sys.stderr,
        )
    run = f"  {program('prefect')} deployment run 'train-fashion-mnist/on-demand' --watch"
    print_result(options, status.model_dump(mode="json"), [*_status_lines(status), run])


@commands.add(
    "down",
    help="stop the services that `up` started",
    description="Stop active flow runs, which become crashed, then the workers, then the server. History, "
    "schedules, results and logs are kept for the next `fashion-ann up`.",
    dataset=False,
    writes=False,
    when_stopped="Run it again to stop the rest.",
)
def _down(options: argparse.Namespace) -> None:
    from cli.services import down

    stopped = down(artifacts_folder(options.artifacts_dir))
    line = f"stopped: {', '.join(stopped)}" if stopped else "Nothing was running."
    print_result(options, {"stopped": stopped}, [line])


@commands.add(
    "status",
    help="show which services of `up` are running",
    description="Print one line per service. Exit status 1 if one is not running. Changes nothing.",
    dataset=False,
    writes=False,
)
def _status(options: argparse.Namespace) -> None:
    from cli.services import status

    current = status(artifacts_folder(options.artifacts_dir))
    print_result(options, current.model_dump(mode="json"), _status_lines(current))
    if missing := [service.name for service in current.services if not service.running]:
        raise NotRunning(f"{', '.join(missing)} not running: run `fashion-ann up` to start everything.")


def _status_lines(status: "Status") -> Iterator[str]:
    for service in status.services:
        pid = "" if service.pid is None else f"process {service.pid}"
        yield f"{service.name:<11}  {service.says:<11}  {pid:<15}  {service.log}".rstrip()
    if status.ui is not None:
        yield f"UI      {status.ui}"
    if status.password_file is not None:
        yield f"login   user:password in {status.password_file}"
    if status.access is not None:
        yield f"access  {status.access}"
    yield f"logs    {status.logs}"
    yield status.note
