"""Every error that this package raises for a mistake the user can correct.

    SfssError(ValueError)          base class; the command line prints its message and exits with 2
    +-- ConfigError                an option is out of range, or its name is unknown
    +-- DataError                  a folder is missing or empty, or images and labels do not pair up
    +-- CheckpointError            a weights file is missing, damaged, or of the wrong kind
    +-- ClusterError               the Ray cluster is unreachable or lacks requested resources
    +-- ResumeError                the output folder holds another run, or a stage that cannot resume
    +-- OutputError                the output cannot be written: a full disk, no permission
    +-- TrainingError              the loss became NaN or Inf; names the step and the last checkpoint

Each message is one line that says what is wrong, the value, what is allowed, and what to do.
"""


class SfssError(ValueError):
    """Base class of all errors of this package that the caller can correct."""


class ConfigError(SfssError):
    """An option is out of range or unknown. The message names the allowed values."""


class DataError(SfssError):
    """Images or labels are missing, empty, damaged, or do not belong together."""


class CheckpointError(SfssError):
    """A weights file is missing, damaged, or not of the expected kind."""


class ClusterError(SfssError):
    """The Ray cluster cannot be reached, or lacks a requested resource (GPUs, CPUs)."""


class ResumeError(SfssError):
    """The output folder belongs to another run. Choose another folder, or the same settings."""


class OutputError(SfssError):
    """A file cannot be written. Free disk space or choose another folder; finished files stay."""


class TrainingError(SfssError):
    """Training stopped because a loss became NaN or Inf. The last good checkpoint is kept."""
