"""The commands for Prefect and this machine: `deploy`, `doctor`, `up`, `down` and `status`."""

import argparse
from typing import TYPE_CHECKING

from cli.arguments import AddParser, add_command, add_data_dir, print_json

if TYPE_CHECKING:
    from cli.services import Status


def add_service_commands(add_parser: AddParser) -> None:
    """Add `deploy`, `doctor`, `up`, `down` and `status`."""
    add_command(
        add_parser,
        "deploy",
        _deploy,
        help="apply the pools, deployments and automations of prefect.yaml to the Prefect API",
        description="Apply work pools, deployments with their schedules and triggers, and automations to the API of "
        "PREFECT_API_URL. A second call changes nothing. FASHION_ANN_NOTIFY, a URL or TYPE/NAME of a block, receives "
        "notifications of failures.",
        dataset=False,
        when_stopped="The deployment may be incomplete. Run the same command again to complete it.",
    )
    doctor = add_command(
        add_parser,
        "doctor",
        _doctor,
        help="check Python, lock, GPU, Prefect, pools, disk, data and store",
        description="Check the requirements of a run, one line each, with a fix for each failure. Changes nothing. "
        "Exit status 1 if a check fails.",
    )
    add_data_dir(doctor, "folder of the CSVs")
    add_command(
        add_parser,
        "up",
        _up,
        help="start a Prefect server and one worker per pool on this machine, and deploy to it",
        description="Start a server on 127.0.0.1, pools, deployments, automations and one worker per pool. Running "
        "services are left as they are. They keep running after this command and its terminal end.",
        dataset=False,
        when_stopped="Started services keep running. `fashion-ann up` starts the rest, `fashion-ann down` stops them.",
    )
    add_command(
        add_parser,
        "down",
        _down,
        help="stop the services that `up` started",
        description="Stop active flow runs, which become crashed, then the workers, then the server. History, "
        "schedules, results and logs are kept for the next `fashion-ann up`.",
        dataset=False,
        when_stopped="Run it again to stop the rest.",
    )
    add_command(
        add_parser,
        "status",
        _status,
        help="show which services of `up` are running",
        description="Print one line per service. Exit status 1 if one is not running. Changes nothing.",
        dataset=False,
    )


def _deploy(options: argparse.Namespace) -> None:
    from cli.deploy import deploy_all

    deploy_all()
    if options.json:
        print_json({"deployed": True})
        return
    print("pools, deployments and automations match prefect.yaml and cli/automations.py")


def _doctor(options: argparse.Namespace) -> None:
    from cli.doctor import DoctorFailed, examine
    from schemas.config import artifacts_folder, data_folder

    checks = examine(artifacts_folder(options.artifacts_dir), data_folder(options.data_dir), options.dataset)
    if options.json:
        print_json([vars(check) for check in checks])
    else:
        for check in checks:
            print(f"{ {True: 'ok', False: 'BROKEN', None: '-'}[check.ok]:<6}  {check.name:<7}  {check.says}")
            if check.ok is False:
                print(f"{'':>17}{check.cure}")
    if broken := [check.name for check in checks if check.ok is False]:
        raise DoctorFailed(f"{', '.join(broken)} broken: see the fix under each item above.")


def _up(options: argparse.Namespace) -> None:
    from cli.services import up
    from schemas.config import artifacts_folder

    _print_status(options, up(artifacts_folder(options.artifacts_dir)))
    if not options.json:
        print("  prefect deployment run 'train-fashion-mnist/on-demand' --watch")


def _down(options: argparse.Namespace) -> None:
    from cli.services import down
    from schemas.config import artifacts_folder

    stopped = down(artifacts_folder(options.artifacts_dir))
    if options.json:
        print_json({"stopped": stopped})
        return
    print(f"stopped: {', '.join(stopped)}" if stopped else "Nothing was running.")


def _status(options: argparse.Namespace) -> None:
    from cli.services import NotRunning, status
    from schemas.config import artifacts_folder

    current = status(artifacts_folder(options.artifacts_dir))
    _print_status(options, current)
    if missing := [service.name for service in current.services if not service.running]:
        raise NotRunning(f"{', '.join(missing)} not running: run `fashion-ann up` to start everything.")


def _print_status(options: argparse.Namespace, status: "Status") -> None:
    if options.json:
        print(status.model_dump_json(indent=2))
        return
    for service in status.services:
        pid = "" if service.pid is None else f"process {service.pid}"
        print(f"{service.name:<11}  {service.says:<11}  {pid:<15}  {service.log}".rstrip())
    if status.ui is not None:
        print(f"UI    {status.ui}")
    print(f"logs  {status.logs}")
    print(status.note)
