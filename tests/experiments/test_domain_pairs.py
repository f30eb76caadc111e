"""The pairs of domains of the studies: which images are target, labelled and scored."""

import pytest


@pytest.fixture
def make_pair(tmp_path, shared_data, experiment):
    pairs = experiment("domain_pairs")
    checkpoint = shared_data("models") / "espnet_p_2_q_8.pth"
    return lambda light: pairs.cityscapes2camvid(tmp_path, shared_data("camvid"), checkpoint, light)


def test_by_day_other_images_are_scored_than_those_of_the_target(make_pair):
    pair = make_pair("day")
    labelled = pair.labelled_target()
    assert [item.image_id for item in labelled] == [file.image_id for file in pair.images]
    assert (len(labelled), len(pair.val)) == (305, 101)
    assert not {item.image_id for item in labelled} & {item.image_id for item in pair.val}
    assert pair.labelled_folds() == [(labelled, pair.val)]  # the ceiling learns from the target


def test_by_dusk_the_target_itself_is_scored(make_pair):
    pair = make_pair("dusk")
    assert len(pair.val) == 62
    assert pair.labelled_target() == pair.val
    (train, score), (again, other) = pair.labelled_folds()
    assert (train, score) == (other, again)
    assert (*train, *score) == pair.val
