"""`sfss-ray VERB`: the package's functions on the command line, generated from their signatures.

No knob is stated here. Options, types and texts come from the functions and from the config classes.
"""

from sfss_ray.cli.command_line import main, split_verb
from sfss_ray.cli.guard import INTERRUPTED, run_guarded
from sfss_ray.cli.results import describe
from sfss_ray.cli.verbs import VERBS

__all__ = ["INTERRUPTED", "VERBS", "describe", "main", "run_guarded", "split_verb"]
