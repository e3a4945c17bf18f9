"""The command for data: `contract`."""

import argparse

from cli.arguments import AddParser, add_command, print_json
from schemas.contract import contract_of


def add_data_commands(add_parser: AddParser) -> None:
    """Add `contract`."""
    add_command(
        add_parser,
        "contract",
        _contract,
        help="print the data contract: required format and checks",
        description="Print the data contract of a dataset, as in docs/contract.md.",
    )


def _contract(options: argparse.Namespace) -> None:
    from schemas.contract_page import contract_json, contract_text

    contract = contract_of(options.dataset)
    if options.json:
        print_json(contract_json(contract))
    else:
        print(contract_text(contract).rstrip())
