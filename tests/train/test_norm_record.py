"""The line that tells the user which BatchNorm statistics were chosen."""

from sfss_ray.train.norm_choice import NormChoice
from sfss_ray.train.norm_record import describe_choice


def test_the_line_names_the_choice_and_all_scores():
    record = NormChoice(0.25, {0.0: 0.6, 0.25: 0.61234, 1.0: 0.5}).as_record()
    assert describe_choice(record) == (
        "BatchNorm: 25% target statistics (consistency over views by share of the target's: 0% 0.600,"
        " 25% 0.612, 100% 0.500)"
    )
    kept = NormChoice(0.0, {0.0: 0.6}).as_record()
    assert describe_choice(kept).startswith("BatchNorm: the source model's statistics (")
