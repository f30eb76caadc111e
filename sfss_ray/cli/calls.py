"""A command line as a call: words are parsed into the function's arguments and a config."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sfss_ray.cli.help_page import verb_page
from sfss_ray.cli.options import ARCHITECTURE, REQUIRED, model_argument, option_name, parameters
from sfss_ray.cli.verbs import Verb
from sfss_ray.cli.words import (
    EMPTY,
    empty_path,
    mark_empty_paths,
    option_names,
    refuse_unknown_options,
    split_lists,
    take_flag,
    take_value,
)
from sfss_ray.config import Config, find_preset, load_config, override
from sfss_ray.errors import ConfigError, SfssError

if TYPE_CHECKING:
    from torch import nn

    from sfss_ray.inspection.plan_result import Plan

_INPUTS = ("source_model", "target_images")
"""Arguments that a dry run reports as missing."""
_SOURCE_MODEL = "source model"
"""Name of that input in a plan."""


@dataclass(frozen=True)
class Program:
    """A verb as it is run from a shell: by `sfss-ray`, or by a recipe with defaults of its own."""

    verb: Verb
    name: str
    """What is typed to run it."""
    text: str | None = None
    """Introduction of the help page; None: the docstring of the verb's function."""
    config: Config = field(default_factory=Config)
    """The config that presets, config files and options are set over."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of arguments that need not be given."""


@dataclass(frozen=True)
class Call:
    """A parsed command line."""

    verb: Verb
    arguments: dict[str, Any]
    """Arguments of the verb's function, without config."""
    config: Config
    architecture: str | None = None
    """Address of the function that builds the module of the source model."""
    dry_run: bool = False
    print_config: bool = False

    def result(self) -> Any:
        """Run the function and return its result, or with `dry_run` the plan of the run."""
        if self.dry_run:
            return self._plan()
        return self.verb.function()(**self._with_model(self._module()), config=self.config)

    def _plan(self) -> Plan:
        """Return the plan of the run; a problem of the user's own module is one of those it lists."""
        from sfss_ray.inspection.run_plan import plan

        arguments, problems = self.arguments, {}
        try:
            module = self._module()
        except SfssError as error:
            problems["architecture"] = str(error)
        else:
            try:
                arguments = self._with_model(module)
            except SfssError as error:
                problems[_SOURCE_MODEL] = str(error)
        # A plan has no use for arguments that only add to a run's output.
        parameters_of_plan = inspect.signature(plan).parameters
        arguments = {name: value for name, value in arguments.items() if name in parameters_of_plan}
        if not problems:
            return plan(**arguments, search=self.verb.name == "tune", config=self.config)

        # Without its module, the checkpoint could only be refused as an unknown one.
        is_given = arguments["source_model"] is not None
        arguments |= {"source_model": None}
        result = plan(**arguments, search=self.verb.name == "tune", config=self.config)
        missing = dict(result.missing)
        if is_given:
            del missing[_SOURCE_MODEL]  # it says that none was given
        return dataclasses.replace(result, missing=problems | missing)

    def _module(self) -> nn.Module | None:
        """Return the module that `--architecture` names."""
        if self.architecture is None:
            return None
        from sfss_ray.models.user_code.architecture import build_architecture

        return build_architecture(self.architecture)

    def _with_model(self, module: nn.Module | None) -> dict[str, Any]:
        """Return the arguments, with the source model loaded into the user's own module, if any."""
        name = model_argument(self.verb)
        if module is None or name is None or self.arguments[name] is None:
            return self.arguments
        from sfss_ray.models.checkpoints import load_source_model

        model = load_source_model(
            self.arguments[name],
            card=self.arguments.get("card"),
            module=module,
            weights=self.config.source_weights,
        )
        return self.arguments | {name: model}


def help_text(program: Program, words: Sequence[str]) -> str | None:
    """Return the help page that the words ask for, or None."""
    wants_all, rest = take_flag(words, "--help-all")
    wants_common, _ = take_flag(rest, "--help", "-h")
    if not wants_all and not wants_common:
        return None
    defaults = {option_name(name): value for name, value in program.defaults.items()}
    return verb_page(program.verb, program.name, wants_all, program.text, defaults)


def parse(program: Program, words: Sequence[str]) -> Call:
    """Parse the words of a command line.

    The config is built in the order defaults, preset, config file, single options; the last one wins.

    Raises:
        SfssError: an option or a value is refused, or a required argument is missing.
    """
    verb = program.verb
    refuse_unknown_options(verb, words, program.name)
    dry_run, words = take_flag(words, "--dry-run")
    print_config, words = take_flag(words, "--print-config")
    preset, words = take_value(words, "--preset")
    config_file, words = take_value(words, "--config")
    architecture, words = take_value(words, ARCHITECTURE)
    words = mark_empty_paths(verb, split_lists(verb, words))
    config = override(program.config, find_preset(preset)) if preset else program.config
    config = load_config(config_file, config) if config_file else config
    defaults = dict(program.defaults)
    if dry_run:
        defaults = dict.fromkeys(_INPUTS) | defaults
    if print_config:
        defaults = dict.fromkeys(parameter.name for parameter in parameters(verb)) | defaults
    arguments = _parse_arguments(program, words, config, defaults)
    for name, value in arguments.items():
        if value == Path(EMPTY):
            raise empty_path(name.upper())
    config = arguments.pop("config")
    return Call(verb, arguments, config, architecture, dry_run=dry_run, print_config=print_config)


def _parse_arguments(
    program: Program, words: Sequence[str], config: Config, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values of the function's arguments, and of `config`.

    tyro draws a box around an error and exits. A ConfigError below it is raised instead, and any other
    error becomes one line, so that errors look the same wherever a value was given.
    """
    import tyro

    collect = _collector(program.verb, words, config, defaults)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(collect, prog=program.name, args=list(words), add_help=False)
    except SystemExit as end:
        error = _cause(end) or ConfigError(_one_line(box.getvalue(), program.name))
    raise error


def _collector(
    verb: Verb, words: Sequence[str], config: Config, defaults: Mapping[str, Any]
) -> Any:
    """Return a function for tyro that has the verb's arguments and all knobs, and returns them."""
    import tyro

    def collect(**arguments: Any) -> dict[str, Any]:
        return arguments

    named = set(option_names(words))
    options = []
    for parameter in parameters(verb):
        annotation, default = parameter.annotation, parameter.default
        if default is REQUIRED and parameter.name in defaults:
            default = defaults[parameter.name]
            annotation = annotation | None if default is None else annotation
        # A required argument of a positional verb may be named too: export MODEL --output-file FILE.
        if verb.is_positional and parameter.default is REQUIRED:
            if option_name(parameter.name) not in named:
                annotation = tyro.conf.Positional[annotation]
            metavar = tyro.conf.arg(metavar=parameter.name.upper())
            annotation = Annotated[annotation, metavar]
        options.append(
            inspect.Parameter(
                parameter.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=annotation,
            )
        )
    knobs = Annotated[Config, tyro.conf.arg(name="")]
    options.append(
        inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=config, annotation=knobs
        )
    )
    collect.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
    collect.__annotations__ = {option.name: option.annotation for option in options}
    return collect


def _cause(error: BaseException | None) -> SfssError | None:
    """Return the SfssError that led to an error, if one did."""
    while error is not None and not isinstance(error, SfssError):
        error = error.__context__
    return error


def _one_line(box: str, program: str) -> str:
    """Return the message of tyro's box on one line, without the help text that it repeats.

    The box is drawn with lines, or with blanks and hyphens where the terminal has no UTF-8.
    """
    message: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│╰╯ ")
        is_rule = set(text) <= set("─-")
        if is_rule and message:
            break
        if not is_rule:
            message.append(text)
    if message and message[0].startswith("Missing from"):
        names = [text.split()[0] for text in message if re.fullmatch(_NAME, text)]
        return f"{program} needs {', '.join(names)}: {program} --help lists its options"
    return f"{' '.join(message).rstrip('.')}: {program} --help lists its options"


_NAME = r"(--[\w.-]+|[A-Z_]+)( [A-Z]+)*"
"""A line of tyro's list of missing arguments, such as `--seed INT`, or IMAGES."""
