"""The class that a student loses most of."""


def test_the_smallest_remaining_part_of_any_seed_counts(experiment):
    worst_class = experiment("class_losses").worst_class
    names = ("road", "fence", "pole", "train")
    source = {"per_class": [80.0, 20.0, 9.0, None]}
    seeds = [{"per_class": [79.0, 21.0, 0.0, None]}, {"per_class": [81.0, 15.0, 9.0, None]}]
    assert worst_class(seeds, source, names) == "fence 20.0 to 15.0"
    assert worst_class(seeds[:1], source, names) == "road 80.0 to 79.0"  # pole was never found
    assert worst_class([source], source, names) == "none"
