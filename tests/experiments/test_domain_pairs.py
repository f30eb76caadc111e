"""The pairs of domains of the studies: which images are target, labelled and scored."""

import pytest

from sfss_ray.data.decoding import read_image
from sfss_ray.streets.scenes import render_scene

SOURCE_SEED = 1
"""Seed of the scenes of the shipped source model, see `experiments/train_source.py`."""


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


def test_a_source_model_meets_new_scenes_of_its_own_domain(tmp_path, experiment):
    pair = experiment("domain_pairs").streets_itself(tmp_path, 2)
    images = [file.read().tobytes() for file in pair.images]
    images += [read_image(item.path).tobytes() for item in pair.val]
    assert (len(pair.images), len(pair.val)) == (2, 40)
    assert len(set(images)) == 42  # no scene is scored that the model is adapted to
    source = render_scene("game", SOURCE_SEED, 0).image  # the model learned on this set
    assert source.tobytes() not in images
    assert [item.image_id for item in pair.labelled_target()] == ["00000", "00001"]
    regions = pair.instances(pair.images[0])
    labels = pair.labelled[0].labels()
    assert regions.shape == labels.shape
    road = labels == 0
    assert len(set(regions[road])) == 1  # the regions are of the same scene


def test_a_pair_of_fewer_scenes_leaves_out_those_of_a_larger_run(tmp_path, experiment):
    pairs = experiment("domain_pairs")
    assert len(pairs.streets(tmp_path, 3).labelled_target()) == 3
    assert len(pairs.streets_itself(tmp_path / "itself", 3).labelled) == 3
    smaller = pairs.streets(tmp_path, 2)
    itself = pairs.streets_itself(tmp_path / "itself", 2)
    for images in (smaller.images, smaller.labelled_target(), itself.images, itself.labelled):
        assert [image.image_id for image in images] == ["00000", "00001"]
