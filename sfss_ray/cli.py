"""`sfss-ray <verb>`: the package's functions on the command line, generated from their signatures.

No knob is stated here: tyro reads arguments, types and texts from the functions and from the config.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from sfss_ray.errors import SfssError
from sfss_ray.runtime.threads import keep_freed_memory
from sfss_ray.storage.files import is_disk_full
from sfss_ray.version import __version__

VERBS: dict[str, tuple[str, str, str]] = {
    "masks": ("sfss_ray.masks.generate", "generate_masks", "make SAM masks of a folder of images"),
    "masks import": (
        "sfss_ray.masks.importing.import_folder",
        "import_masks",
        "take masks that segment-anything's amg.py wrote",
    ),
    "masks inspect": (
        "sfss_ray.inspection.mask_folder",
        "inspect_masks",
        "say what a folder of masks holds, and draw some",
    ),
    "pretrain": ("sfss_ray.train.launch", "pretrain_source", "train a source model on labels"),
    "train": ("sfss_ray.train.launch", "train_student", "adapt with masks that are there"),
    "adapt": ("sfss_ray.pipeline", "adapt", "adapt a source model to unlabelled images"),
    "tune": (
        "sfss_ray.pipeline",
        "tune_hyperparameters",
        "search temperature, contrast weight and EMA momentum, then adapt",
    ),
    "verify": (
        "sfss_ray.inspection.source_model",
        "verify_source",
        "look at a source checkpoint before anything is trained",
    ),
    "evaluate": (
        "sfss_ray.evaluation.scoring",
        "evaluate_model",
        "score a model on labelled images",
    ),
    "data check": (
        "sfss_ray.inspection.data_set",
        "check_dataset",
        "say what a labelled data set is and what is wrong",
    ),
    "predict": ("sfss_ray.prediction.folder", "predict", "predict every image of a folder"),
    "export": ("sfss_ray.prediction.onnx_export", "export_onnx", "write a model as ONNX, checked"),
}
POSITIONAL = ("masks import", "masks inspect", "data check", "predict", "export")
"""Verbs whose required paths are given without their names: `sfss-ray predict MODEL DIR OUT`."""
_GROUPS = {verb.partition(" ")[0] for verb in VERBS if " " in verb} - VERBS.keys()
"""First words of verbs that are no verb themselves."""
_HELP = ("-h", "--help")
INTERRUPTED = 130
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def usage(group: str = "") -> str:
    """The help page of the command itself, or of verbs that begin with one word."""
    shown = {
        verb: text for verb, (_, _, text) in VERBS.items() if verb.startswith(f"{group} ".lstrip())
    }
    lines = [f"  {verb:15}{text}" for verb, text in shown.items()]
    return (
        f"usage: sfss-ray {f'{group} VERB'.lstrip()} [OPTIONS]\n\n"
        "Adapt a segmentation model without the source data.\n\n"
        + "\n".join(lines)
        + "\n\n`sfss-ray VERB --help` shows the options of a verb, `sfss-ray --version` the version."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the console script; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in _HELP:
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"sfss-ray {__version__}")
        return 0
    verb, rest = split_verb(words)
    if verb in _GROUPS and (not rest or rest[0] in _HELP):
        print(usage(verb))
        return 0
    if verb not in VERBS:
        print(_unknown_verb(verb), file=sys.stderr)
        return 2
    return run_guarded(lambda: _call(verb, rest))


def _unknown_verb(verb: str) -> str:
    near = difflib.get_close_matches(verb, VERBS, n=2, cutoff=0.6)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"error: unknown verb {verb!r}: {advice or 'known are ' + ', '.join(VERBS)}"


def split_verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, which may be two words (the longest known one), and the words behind it.

    A second word that is no option belongs to the verb where the first one has verbs below it, so
    that a misspelt one is named whole.
    """
    has_verbs_below = any(verb.startswith(f"{words[0]} ") for verb in VERBS)
    if has_verbs_below and words[1:] and not words[1].startswith("-"):
        return " ".join(words[:2]), list(words[2:])
    return words[0], list(words[1:])


def _call(verb: str, words: list[str]) -> int:
    module, name, _ = VERBS[verb]
    function = getattr(importlib.import_module(module), name)
    preset, words = split_preset(words)
    prepare = command(function, positional=verb in POSITIONAL, preset=preset)
    work = _parse(prepare, verb, words)
    result = work()
    for line in describe(result):
        print(line)
    return getattr(result, "exit_code", 0)


def _parse(
    prepare: Callable[..., Callable[[], Any]], verb: str, words: list[str]
) -> Callable[[], Any]:
    """Words of the command line -> the work they ask for.

    tyro draws a box around a refused knob and exits; the error below it is raised instead, so that a
    knob out of its range reads the same wherever it was given.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(prepare, prog=f"sfss-ray {verb}", args=words)
    except SystemExit as end:
        refused = _refusal(end)
        if refused is None:
            print(said.getvalue(), end="", file=sys.stderr)
            raise
    raise refused


def _refusal(error: BaseException | None) -> SfssError | None:
    """The SfssError among what led to an error."""
    while error is not None and not isinstance(error, SfssError):
        error = error.__context__
    return error


def split_preset(words: list[str]) -> tuple[str | None, list[str]]:
    """`--preset NAME` taken out of the words: it is the base that single knobs are laid over."""
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == "--preset" and (equals or words[place + 1 :]):
            rest = words[place + 1 :] if equals else words[place + 2 :]
            return value if equals else words[place + 1], words[:place] + rest
    return None, words


def command(
    function: Callable[..., Any], positional: bool = False, preset: str | None = None
) -> Callable[..., Callable[[], Any]]:
    """The function as a command: every argument an option, the config's knobs beside them.

    Called with the options it returns the work still to be done, a call without arguments.
    With `positional` the function's required arguments are words without a name, in its order.
    `preset` names the settings that knobs start from. `progress` is no option of a command line. A
    `--config-file` of JSON, as a search writes it, is laid over the single knobs.
    """
    import tyro

    from sfss_ray.config import Config, find_preset, load_config, override

    base = override(Config(), find_preset(preset)) if preset else Config()
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name not in ("progress", "config")]
    knobs = Annotated[Config, tyro.conf.arg(name="", help="")]
    options = [
        inspect.Parameter(
            p.name, _KEYWORD, default=p.default, annotation=_on_command_line(p.annotation)
        )
        for p in own
    ]
    if positional:
        options = [_without_name(p) if p.default is p.empty else p for p in options]
    options.append(
        inspect.Parameter("preset", _KEYWORD, default=preset, annotation=_preset_option())
    )
    options.append(
        inspect.Parameter("config_file", _KEYWORD, default=None, annotation=_config_file_option())
    )
    options.append(inspect.Parameter("config", _KEYWORD, default=base, annotation=knobs))

    def prepare(
        *, preset: str | None, config_file: Path | None, config: Config, **rest: Any
    ) -> Callable[[], Any]:
        if config_file is not None:
            config = load_config(config_file, config)
        return functools.partial(function, config=config, **rest)

    prepare.__doc__ = function.__doc__ or ""
    prepare.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
    prepare.__annotations__ = {p.name: p.annotation for p in options}
    return prepare


def _preset_option() -> Any:
    import tyro

    from sfss_ray.config import PRESETS

    names = Literal[tuple(PRESETS)]  # pyright: ignore[reportInvalidTypeForm]
    text = "Named settings that single options are laid over."
    return Annotated[names | None, tyro.conf.arg(help=text)]


def _config_file_option() -> Any:
    import tyro

    text = (
        "JSON file of settings by dotted name, such as best_config.json of a search. It is laid over the"
        " single options."
    )
    return Annotated[Path | None, tyro.conf.arg(help=text)]


def _without_name(option: inspect.Parameter) -> inspect.Parameter:
    import tyro

    return option.replace(annotation=tyro.conf.Positional[option.annotation])


def _on_command_line(annotation: Any) -> Any:
    """Paths are one thing on a command line, and models and cards are paths there."""
    from sfss_ray.models.card import CardLike
    from sfss_ray.models.source import SourceLike
    from sfss_ray.tracking.tracker import TrackerLike, TrackerName

    if annotation == Sequence[TrackerLike]:
        return tuple[TrackerName, ...]
    known: dict[Any, Any] = {Path | str: Path, SourceLike: Path, CardLike: Path}
    optional = {kind | None: Path | None for kind in known}
    return (known | optional).get(annotation, annotation)


def run_guarded(work: Callable[[], int | None]) -> int:
    """Run a command: its own exit code, or 0; SfssError becomes one line and code 2, Ctrl-C 130.

    SIGTERM is treated as Ctrl-C, so that a job that is stopped ends its cluster too.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal whose encoding lacks a character
            stream.reconfigure(errors="backslashreplace")
    keep_freed_memory()
    try:
        return work() or 0
    except SfssError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(
            f"error: the disk is full ({error}): free some space and run again; what is finished stays",
            file=sys.stderr,
        )
        return 2


def describe(result: Any) -> list[str]:
    """What a verb prints when it is done: the run's table, or the result's fields."""
    if hasattr(result, "lines"):
        return result.lines()
    report = getattr(result, "report", None)
    if report is not None:
        from sfss_ray.report.tables import results_table

        return [
            results_table(report),
            "",
            f"model: {result.student_path}",
            f"report: {result.report_html}",
        ]
    fields = {name: value for name, value in vars(result).items() if name != "curve"}
    lines = []
    for name, value in fields.items():
        if isinstance(value, dict):
            lines += [f"{name}:"] + [f"  {key}: {_short(item)}" for key, item in value.items()]
        else:
            lines.append(f"{name}: {_short(value)}")
    return lines


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
