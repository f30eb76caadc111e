"""A whole adaptation in which SAM 3 with random weights votes, on a local cluster."""

from __future__ import annotations

import json

import pytest
from concept_models import save_concept_model

import sfss_ray
from sfss_ray.config import override
from sfss_ray.errors import ConfigError, ResumeError
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.report.tables import results_table

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]


@pytest.fixture(scope="module")
def masks(streets, tiny_config, shared_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    sfss_ray.generate_masks(streets / "target" / "images", folder, config=tiny_config, progress=str)
    return folder


def test_masks_with_classes_vote_and_are_named_as_external(
    source_model, streets, masks, tiny_config, tmp_path
):
    """Also resumed, planned, and refused with other settings."""
    network, target = save_concept_model(tmp_path / "sam3"), streets / "target" / "images"
    knobs = {
        "masks.concepts": str(network),
        "masks.concept_prompts": "pole: pole, street lamp",
        "masks.concept_score_thresh": 0.3,
    }
    config, lines = override(tiny_config, knobs), []

    def adapt(config):
        return sfss_ray.adapt(
            source_model,
            target,
            tmp_path / "run",
            masks=masks,
            config=config,
            progress=lines.append,
        )

    plan = sfss_ray.plan(
        source_model, target, tmp_path / "run", masks=masks, config=config, progress=str
    )
    line = f"external knowledge: {network} (SAM 3), 20 prompts for 19 of 19 classes"
    assert plan.found["concepts"] == line
    assert [stage.name for stage in plan.stages][:2] == ["concepts", "training"]

    result = adapt(config)
    assert line in lines
    facts = result.report.external_knowledge
    store = MaskStore(tmp_path / "run" / "concepts")
    assert facts is not None
    assert facts.masks == store.num_masks > 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["external_knowledge"]["name"] == "SAM 3 prompted with class names"
    assert "EXTERNAL knowledge: SAM 3" in results_table(result.report)
    assert result.student.facts["external_knowledge"] == "SAM 3 prompted with class names"
    assert adapt(config).report.rows == result.report.rows
    with pytest.raises(ResumeError, match="concept_score_thresh"):
        adapt(override(config, {"masks.concept_score_thresh": 0.4}))
    with pytest.raises(ConfigError, match="no class 'lamp'"):
        adapt(override(config, {"masks.concept_prompts": "lamp: lamp"}))


def test_training_on_masks_that_are_there_makes_masks_with_classes(
    source_model, streets, masks, tiny_config, tmp_path
):
    network = save_concept_model(tmp_path / "sam3")
    config = override(tiny_config, {"masks.concepts": str(network)})
    result = sfss_ray.train_student(
        source_model, streets / "target" / "images", masks, tmp_path / "run", config=config,
        progress=str,
    )  # fmt: skip
    facts = sfss_ray.load_model(result.model).facts
    assert facts["external_knowledge"] == "SAM 3 prompted with class names"
    assert len(MaskStore(tmp_path / "run" / "concepts")) == 12
