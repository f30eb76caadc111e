"""A shell script that completes verbs, options and the values that options choose from."""

from __future__ import annotations

from sfss_ray.cli.options import Option, all_options
from sfss_ray.cli.verbs import VERBS

SHELLS = ("bash", "zsh")

_SCRIPT = """\
# Completion of sfss-ray: eval "$(sfss-ray --print-completion {shell})"
{preamble}_sfss_ray() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" choices=""
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "{first_words}" -- "$current"))
        return
    fi
    if [[ $COMP_CWORD -eq 2 && "$current" != -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{second_words}
        esac
        COMPREPLY=($(compgen -W "$choices" -- "$current"))
        return
    fi
    case "$previous" in
{values}
    esac
    if [[ -z "$choices" && "$current" == -* ]]; then
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{options}
        esac
    fi
    COMPREPLY=($(compgen -W "$choices" -- "$current"))
}}
complete -o default -F _sfss_ray sfss-ray
"""
_TOP_LEVEL = ("--help", "--version", "--print-completion")


def completion_script(shell: str) -> str:
    """Return the completion script for bash or zsh. Files are completed where no list applies."""
    preamble = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    options = {name: _shown(all_options(verb)) for name, verb in VERBS.items()}
    choices = {
        option.name: option.choices
        for verb_options in options.values()
        for option in verb_options
        if option.choices
    }
    first_words = [*dict.fromkeys(name.partition(" ")[0] for name in VERBS), *_TOP_LEVEL]
    second_words: dict[str, list[str]] = {"--print-completion": list(SHELLS)}
    for first, _, second in (name.partition(" ") for name in VERBS):
        if second:
            second_words.setdefault(first, []).append(second)
    # The longer verbs come first: "masks import" would match the pattern of "masks" too.
    names = sorted(VERBS, key=lambda name: -name.count(" "))
    patterns = {name: f'"{name}"' if " " in name else f'"{name} "*' for name in names}
    return _SCRIPT.format(
        shell=shell,
        preamble=preamble,
        first_words=" ".join(first_words),
        second_words=_cases(second_words, 12),
        values=_cases(choices, 8),
        options=_cases(
            {patterns[name]: [n for o in options[name] for n in o.names] for name in names}, 12
        ),
    )


def _shown(options: list[Option]) -> list[Option]:
    return [option for option in options if option.level != "research"]


def _cases(table: dict, indent: int) -> str:
    """Return the branches of a `case` statement, which set `choices`."""
    return "\n".join(
        f'{" " * indent}{pattern}) choices="{" ".join(words)}" ;;'
        for pattern, words in table.items()
    )
