"""What `clickwake dashboard add-user`, `remove-user` and `users` do and print."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from typing import NoReturn, get_args

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from clickwake.dashboard import accounts
from clickwake.dashboard.accounts import GENERATED_BYTES, Account, BadAccounts, Role
from stream.settings import load

_errors = Console(stderr=True)


def add(name: str, role: str, *, tenants: Sequence[str] = (), generate: bool, stdin: bool) -> None:
    """Add or replace; for all tenants where none is named. The password is asked for twice, or drawn and printed once."""
    if role not in get_args(Role):
        _fail(f"there is no role {role!r}; there are {' and '.join(get_args(Role))}")
    if generate and stdin:
        _fail("--generate draws a password and --password-stdin reads one: name one of them")
    if generate:
        password = secrets.token_urlsafe(GENERATED_BYTES)
    elif stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = typer.prompt(f"password of {name}", hide_input=True, confirmation_prompt=True)
    path = load().accounts_file
    try:
        known = accounts.read(path)
        known[name] = accounts.new(name, msgspec.convert(role, Role), password, tuple(tenants) or None)
    except BadAccounts as error:
        _fail(str(error))
    accounts.write(path, known)
    if generate:
        Console(soft_wrap=True).print(password, markup=False, highlight=False)
    _errors.print(f"{name} may sign in ({role}): {path.absolute()}", markup=False, highlight=False, soft_wrap=True)


def remove(name: str) -> None:
    """Take out."""
    path = load().accounts_file
    known = _read()
    if known.pop(name, None) is None:
        _fail(f"{path.absolute()} has no user {name!r}; see clickwake dashboard users")
    accounts.write(path, known)


def users(as_json: bool) -> None:
    """Names, roles and tenants; hashes are nobody's business."""
    known = _read().values()
    if as_json:
        told = [{"name": one.name, "role": one.role, "tenants": one.tenants} for one in known]
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
        return
    table = Table("name", "role", "tenants")
    for one in known:
        table.add_row(one.name, one.role, "all" if one.tenants is None else ", ".join(one.tenants))
    Console().print(table)


def _read() -> dict[str, Account]:
    try:
        return accounts.read(load().accounts_file)
    except BadAccounts as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    _errors.print(message, style="red", markup=False, highlight=False)
    raise SystemExit(1)
