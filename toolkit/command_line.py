"""From a frozen dataclass to a command: flags, YAML, help and one-line errors. The only user of jsonargparse."""

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from toolkit.errors import UserError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options")

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # a field's docstring is its help text


def parse(cls: type[Options], argv: list[str] | None = None) -> Options:
    """Read `argv` (default: the process's arguments) into the dataclass `cls`.

    `--config FILE` gives YAML values for any field; flags win over the file wherever they stand.
    Raises UserError for unknown names (with the nearest valid one), wrong types and values out of range.
    """
    arguments = _renamed(_config_first(list(sys.argv[1:] if argv is None else argv)), cls)
    arguments = _bare_switches(arguments, cls)
    parser = _parser(cls)
    for path in _config_files(arguments):
        _check_config_file(path)
    try:
        values = parser.parse_args(arguments)
        values.pop("config", None)
        return cls(**values.as_dict())
    except UserError:
        raise
    except Exception as error:  # jsonargparse raises several unrelated types for bad input
        raise UserError(_one_line(str(error), cls)) from None


def dump(options: "DataclassInstance") -> str:
    """The dataclass as YAML that `--config` reads back to an equal object."""
    parser = _parser(type(options))
    return parser.dump(Namespace(dataclasses.asdict(options)), skip_none=False)


def run(main: Callable[[Options], None], cls: type[Options], argv: list[str] | None = None) -> None:
    """Parse, call `main`, and turn a UserError into one line on stderr and its exit code (usage: 2)."""
    script = Path(sys.argv[0])
    script = script.parent if script.stem == "__main__" else script  # python -m shards.inspect
    program = (main.__module__ if main.__module__ != "__main__" else script.stem).split(".__")[0]
    rank = os.environ.get("RANK", "0")
    prefix = program if rank == "0" else f"{program} (process {rank})"
    try:
        options = parse(cls, argv)
    except UserError as error:
        _say(f"{prefix}: {error}. See --help.")
        sys.exit(2)
    try:
        main(options)
    except UserError as error:
        _say(f"{prefix}: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say(f"{prefix}: interrupted")
        sys.exit(130)


def _say(line: str) -> None:
    """In one write: `print` makes two, and another process's line could come between a line and its end."""
    sys.stderr.write(line + "\n")


def data_first(arguments: list[str]) -> list[str]:
    """`DIR ...` -> `--data DIR ...`: the fields of an options class become flags only."""
    return ["--data", *arguments] if arguments and not arguments[0].startswith("-") else arguments


def _parser(cls: type) -> ArgumentParser:
    parser = ArgumentParser(
        prog=_program(), description=cls.__doc__, default_meta=False, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file with values for the options below; flags win.")
    for section in getattr(cls, "SECTIONS", (cls,)):
        parser.add_class_arguments(section)
    return parser


def _program() -> str:
    """What the usage line shows: 'python -m shards.inspect', or the file's name where a path was started."""
    spec = sys.modules["__main__"].__spec__  # None for a path
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


def _config_first(arguments: list[str]) -> list[str]:
    """Move `--config X` to the front: jsonargparse applies arguments left to right, and flags should win."""
    configs, others = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            configs += [argument, next(rest, "")]
        elif argument.startswith("--config="):
            configs.append(argument)
        else:
            others.append(argument)
    return configs + others


def _renamed(arguments: list[str], cls: type) -> list[str]:
    """Former names of flags, by the class's `RENAMED` (old -> new), as today's."""
    former = {f"--{old}": f"--{new}" for old, new in getattr(cls, "RENAMED", {}).items()}
    parts = (argument.partition("=") for argument in arguments)
    return [former.get(flag, flag) + equals + value for flag, equals, value in parts]


def _bare_switches(arguments: list[str], cls: type) -> list[str]:
    """`--interactive` alone means `--interactive true`, which jsonargparse insists on."""
    switches = {f"--{field.name}" for field in dataclasses.fields(cls) if field.type is bool}
    values = {"true", "false", "yes", "no"}
    following = [*arguments[1:], ""]
    return [
        f"{argument}=true" if argument in switches and after.lower() not in values else argument
        for argument, after in zip(arguments, following, strict=False)  # no arguments: one more of the latter
    ]


def _config_files(arguments: list[str]) -> list[Path]:
    named = [after for before, after in zip(arguments, arguments[1:], strict=False) if before == "--config"]
    return [Path(name) for name in named + [a[9:] for a in arguments if a.startswith("--config=")]]


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses aliases (bombs) and equal keys, of which PyYAML would keep the last without a word."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise UserError("YAML aliases are not accepted")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        doubled = next((key for key in keys if keys.count(key) > 1), None)
        if doubled is not None:
            raise UserError(f"the key '{doubled}' stands twice (line {node.start_mark.line + 1} on)")
        return super().construct_mapping(node, deep)


def _check_config_file(path: Path) -> None:
    """What jsonargparse lets pass or reports without the file's name."""
    try:
        if path.stat().st_size > 1_000_000:
            raise UserError(f"config file {path} is larger than 1 MB; that is no config")
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config file {path} cannot be read: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"config file {path} must hold 'name: value' lines, found {type(content).__name__}")


def _one_line(message: str, cls: type) -> str:
    """jsonargparse's message in one line, with the nearest valid name for an unknown one."""
    valid = [field.name for field in dataclasses.fields(cls)]
    unknown = re.search(r"Option '([\w.-]+)' is not accepted|unrecognized arguments: (?:--)?([\w.-]+)", message, re.I)
    if unknown:
        name = unknown[1] or unknown[2]
        return f"unknown option '{name}'{nearest(name, [*valid, 'config'])}"
    wrong = re.search(r'key "([\w.]+)":?\s*(.*)', message, re.S)
    if wrong:
        text = " ".join(wrong[2].split()).replace("typing.", "")
        text = re.sub(r"<class '(\w+)'>", r"\1", text)
        return f"{wrong[1]}: {text}"
    return " ".join(message.split())
