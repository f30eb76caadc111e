"""The console script: finds the verb, shows a page or runs it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from sfss_ray.cli.calls import Call, Program, help_text, parse
from sfss_ray.cli.completion import SHELLS, completion_script
from sfss_ray.cli.guard import run_guarded
from sfss_ray.cli.help_page import verb_list
from sfss_ray.cli.results import describe, exit_code
from sfss_ray.cli.verbs import VERB_GROUPS, VERBS
from sfss_ray.cli.words import take_value
from sfss_ray.config import to_yaml
from sfss_ray.errors import ConfigError
from sfss_ray.version import __version__

_HELP = ("-h", "--help", "--help-all")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: The words after `sfss-ray`. None: those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_guarded(lambda: _main(words))


def _main(words: Sequence[str]) -> int:
    if not words or words[0] in _HELP:
        print(verb_list())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"sfss-ray {__version__}")
        return 0
    if words[0].partition("=")[0] == "--print-completion":
        return _print_completion(words)
    verb, rest = split_verb(words)
    if verb in VERB_GROUPS and (not rest or rest[0] in _HELP):
        print(verb_list(verb))
        return 0
    if verb not in VERBS:
        print(_unknown_verb(verb), file=sys.stderr)
        return 2
    program = Program(VERBS[verb], f"sfss-ray {verb}")
    return _run(program, rest)


def _run(program: Program, words: Sequence[str]) -> int:
    page = help_text(program, words)
    if page is not None:
        print(page)
        return 0
    return execute(parse(program, words))


def execute(call: Call) -> int:
    """Run a call, print its result, and return the exit code."""
    if call.print_config:
        print(to_yaml(call.config), end="")
        return 0
    result = call.result()
    for line in describe(result):
        print(line)
    return exit_code(result)


def _print_completion(words: Sequence[str]) -> int:
    shell, _ = take_value(words, "--print-completion")
    if shell not in SHELLS:
        raise ConfigError(f"--print-completion is {shell!r}: allowed is one of {', '.join(SHELLS)}")
    print(completion_script(shell), end="")
    return 0


def _unknown_verb(verb: str) -> str:
    similar = difflib.get_close_matches(verb, VERBS, n=2, cutoff=0.6)
    advice = f"did you mean {' or '.join(map(repr, similar))}?" if similar else ""
    return f"error: unknown verb {verb!r}: {advice or 'known are ' + ', '.join(VERBS)}"


def split_verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the verb, which may have two words, and the words after it.

    A second word that is no option belongs to the verb if longer verbs begin with the first word. A
    misspelt second word is therefore named in the error too.
    """
    has_longer_verbs = any(verb.startswith(f"{words[0]} ") for verb in VERBS)
    if has_longer_verbs and words[1:] and not words[1].startswith("-"):
        return " ".join(words[:2]), list(words[2:])
    return words[0], list(words[1:])
