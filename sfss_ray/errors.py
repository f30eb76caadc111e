"""Every error this package raises for something a user can cause.

    SfssError(ValueError)          any of the below; the command line prints its one line, exits with 2
    +-- ConfigError                a knob has a value outside its range, or a name nobody knows
    +-- DataError                  a folder is missing or empty, images and labels do not pair up
    +-- CheckpointError            a weights file is missing, damaged, or of another kind than asked
    +-- ClusterError               the Ray cluster cannot be reached or lacks what was asked for
    +-- ResumeError                the output folder holds another run, or a stage that cannot go on
    +-- OutputError                the output cannot be written: a full disk, no permission
    +-- TrainingError              the loss became NaN or Inf; names the step and the last checkpoint

Each message says what is wrong, the value, what is allowed, and what to do, in one line.
"""


class SfssError(ValueError):
    """Base of all errors of this package: something the caller can put right."""


class ConfigError(SfssError):
    """A knob is out of its range or unknown. Look at the range named in the message."""


class DataError(SfssError):
    """Images or labels are missing, empty, or do not belong together."""


class CheckpointError(SfssError):
    """A weights file is missing, damaged, or not of the kind that was asked for."""


class ClusterError(SfssError):
    """The Ray cluster cannot be reached, or has not what was asked for (a GPU, CPUs)."""


class ResumeError(SfssError):
    """The output folder belongs to another run. Choose another folder, or the same settings."""


class OutputError(SfssError):
    """A file cannot be written. Free disk space or give another place; what is written is kept."""


class TrainingError(SfssError):
    """Training cannot go on: a loss became NaN or Inf. The last good checkpoint is kept."""
