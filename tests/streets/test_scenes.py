"""Rendered street scenes: deterministic, aligned, complete, and different between the domains."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sfss_ray.streets.scenes import DOMAINS, Scene, render_scene, write_streets

DRAWN_CLASSES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 18}
IGNORED = 255
_SIZE = (64, 128)


def _are_equal(first: Scene, second: Scene) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("image", "labels", "instances", "parts")
    )


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {
        domain: [render_scene(domain, 5, index, _SIZE) for index in range(40)] for domain in DOMAINS
    }


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_scene_does_not_depend_on_order_or_global_state(domain, scenes):
    np.random.seed(1)
    backwards = [render_scene(domain, 5, index, _SIZE) for index in (7, 3, 0)]
    forwards = [scenes[domain][index] for index in (7, 3, 0)]
    assert all(_are_equal(a, b) for a, b in zip(backwards, forwards, strict=True))


def test_rendering_does_not_change_the_global_random_state():
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    render_scene("game", 0, 0, (32, 32))
    assert np.array_equal(np.random.random(4), expected)


def test_seed_index_and_domain_each_change_the_scene():
    base = render_scene("game", 0, 0, (32, 64))
    for other in (("game", 1, 0), ("game", 0, 1), ("camera", 0, 0)):
        assert not np.array_equal(render_scene(*other, (32, 64)).image, base.image)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 40), (97, 201)])
def test_arrays_have_the_requested_size_and_types(domain, size):
    scene = render_scene(domain, 2, 1, size)
    assert (scene.image.shape, scene.image.dtype) == ((*size, 3), np.uint8)
    assert (scene.labels.shape, scene.labels.dtype) == (size, np.uint8)
    assert (scene.instances.shape, scene.instances.dtype) == (size, np.int32)
    assert (scene.parts.shape, scene.parts.dtype) == (size, np.int32)


def _count_partners(inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Return the number of distinct values of `outer` at the pixels of each value of `inner`."""
    pairs = np.unique(np.stack([inner.ravel(), outer.ravel()]), axis=1)
    return np.unique(pairs[0], return_counts=True)[1]


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_part_has_one_instance_and_each_instance_one_label(domain, scenes):
    for scene in scenes[domain]:
        assert (_count_partners(scene.parts, scene.instances) == 1).all()
        assert (_count_partners(scene.instances, scene.labels) == 1).all()
        assert np.array_equal(scene.parts == 0, scene.instances == 0)
        assert np.array_equal(scene.instances == 0, scene.labels == IGNORED)
        assert scene.parts.min() >= 0


@pytest.mark.parametrize("domain", DOMAINS)
def test_all_drawn_classes_appear(domain, scenes):
    labels = set(np.unique(np.stack([scene.labels for scene in scenes[domain]])).tolist())
    assert labels - {IGNORED} == DRAWN_CLASSES


def test_objects_consist_of_several_parts(scenes):
    scene = scenes["game"][0]
    parts_per_instance = _count_partners(scene.instances, scene.parts)
    assert parts_per_instance.max() > 3
    assert len(np.unique(scene.instances)) > 10


def test_image_edges_follow_the_labels(scenes):
    """Colours change more across the border of a label than inside a segment."""
    across, inside = [], []
    for scene in scenes["game"]:
        change = np.abs(np.diff(scene.image.astype(int), axis=1)).sum(-1)
        border = np.diff(scene.labels.astype(int), axis=1) != 0
        across.append(change[border].mean())
        inside.append(change[~border].mean())
    assert np.mean(across) > 3 * np.mean(inside)


def _mean_of(scenes: list[Scene], statistic) -> float:
    return float(np.mean([statistic(scene) for scene in scenes]))


def _saturation(scene: Scene) -> float:
    return float(np.ptp(scene.image.astype(int), axis=-1).mean())


def _contrast(scene: Scene) -> float:
    return float(scene.image.mean(-1).std())


def test_domains_differ_in_appearance_and_layout(scenes):
    game, camera = scenes["game"], scenes["camera"]
    assert _mean_of(game, _saturation) > 1.4 * _mean_of(camera, _saturation)
    assert _mean_of(game, _contrast) > 1.1 * _mean_of(camera, _contrast)
    for label in (8, 11, 13):
        share = [
            _mean_of(group, lambda s, k=label: (s.labels == k).mean()) for group in (game, camera)
        ]
        assert share[1] > share[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("film", 0, 0), "'film'.*game, camera"),
        (("game", -1, 0), "seed is -1.*0 or more"),
        (("game", 0, -2), "index is -2.*0 or more"),
        (("game", 0, 0, (31, 64)), r"\(31, 64\).*32 or more"),
        (("game", 0, 0, (64, 8)), r"\(64, 8\).*32 or more"),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_scene(*arguments)


def test_written_files_contain_the_scenes_and_existing_ones_are_kept(tmp_path):
    write_streets(tmp_path, "camera", 4, 2, (32, 48))
    scene = render_scene("camera", 4, 1, (32, 48))
    image = cv2.imread(str(tmp_path / "images/00001.png"))[..., ::-1]
    labels = cv2.imread(str(tmp_path / "labels/00001.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(image, scene.image)
    assert np.array_equal(labels, scene.labels)
    (tmp_path / "images/00000.png").write_bytes(b"kept")
    (tmp_path / "labels/00001.png").unlink()
    write_streets(tmp_path, "camera", 4, 3, (32, 48))
    assert (tmp_path / "images/00000.png").read_bytes() == b"kept"
    for folder in ("images", "labels"):
        names = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert names == ["00000.png", "00001.png", "00002.png"]


def test_labels_are_optional_and_the_count_is_checked(tmp_path):
    write_streets(tmp_path, "game", 0, 1, (32, 32), with_labels=False)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    with pytest.raises(ValueError, match="count is -1"):
        write_streets(tmp_path, "game", 0, -1)
