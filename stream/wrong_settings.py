"""What is said of a setting that cannot be used: its variable, what is wrong, what to do; never its value, which may be a
secret, nor a name within it, which may be a secret in the wrong place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

PREFIX, DELIMITER = "CLICKWAKE_", "__"
SERVICE = ("tcp://", "udp://", "sctp://")
EXIT_CODE = 2  # as for an option that there is not
SAID = {
    "dict_type": 'should be a JSON object, such as {"name": "value"}',
    "tuple_type": 'should be a JSON array, such as ["value"]',
    "model_type": "is a section: set its fields, each a variable of its own, or a JSON object of them",
    "extra_forbidden": "there is no such setting",
}
ALSO = {f"{PREFIX}TRACING{DELIMITER}RATIO": "OTEL_TRACES_SAMPLER_ARG"}  # where it may have come from


def variable(*path: str) -> str:
    """
    >>> variable("kafka", "sasl_password")
    'CLICKWAKE_KAFKA__SASL_PASSWORD'
    """
    return PREFIX + DELIMITER.join(path).upper()


def lines_of(error: ValueError, settings: type[BaseModel]) -> list[str]:
    """A line for each variable of the `settings` that is wrong."""
    if not isinstance(error, ValidationError):
        return [str(error)]
    wrong: dict[str, list[str]] = {}
    for one in error.errors(include_input=False, include_context=False, include_url=False):
        name, within = variable(*map(str, one["loc"][:2])), one["loc"][2:]
        what = SAID.get(one["type"]) or one["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if one["type"] == "extra_forbidden":
            what += _or_meant(name, settings)
        said = wrong.setdefault(name, [])
        if (text := f"something in it: {what}" if within else what) not in said:
            said.append(text)
    return [f"{' or '.join(filter(None, (name, ALSO.get(name))))}: {', or '.join(said)}" for name, said in wrong.items()]


def misspelt(variables: Mapping[str, str], settings: type[BaseModel]) -> list[str]:
    """A line for each environment variable that looks like one of the `settings` and is none, for nobody reads it: in no
    section, or with another underscore. Others that begin alike, such as those of docker-compose.yml, are let be, and so is
    the address of a service called clickwake-api, which Kubernetes puts into CLICKWAKE_API_PORT."""
    known = {_letters(name): name for name in _variables(settings)}
    lines = []
    for name, value in sorted(variables.items()):
        section, delimiter, _ = name.upper().removeprefix(PREFIX).partition(DELIMITER)
        if not name.upper().startswith(PREFIX) or section.lower() in settings.model_fields or value.startswith(SERVICE):
            continue
        if delimiter or _letters(name) in known:
            meant = known.get(_letters(name))
            or_meant = f"; did you mean {meant}?" if meant else _or_meant(name, settings)
            lines.append(f"{name}: {SAID['extra_forbidden']}{or_meant}")
    return lines


def _letters(name: str) -> str:
    return name.upper().replace("_", "")


def _or_meant(name: str, settings: type[BaseModel]) -> str:
    known = {one.removeprefix(PREFIX): one for one in _variables(settings)}  # what all begin with would make all alike
    near = difflib.get_close_matches(name.upper().removeprefix(PREFIX), known, 1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def _variables(settings: type[BaseModel]) -> list[str]:
    return [variable(section, name) for section, field in settings.model_fields.items()
            for name in getattr(field.annotation, "model_fields", ())]  # fmt: skip
