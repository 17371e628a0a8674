"""Checks of the task of text and images, made before anything is started."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

from causalfusion import CausalFusionConfig

from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.caption_tokens import check_captions
from ...data.split_digits import validation_folder
from ...data.validate import check_model_fits, open_shards


def check_settings(experiment: Experiment) -> CausalFusionConfig:
    """Check that model, objective and evaluation are those of text and images. Return the model's configuration.

    Raises:
        UserError: they are not.
    """
    model = experiment.model
    if not isinstance(model, CausalFusionConfig) or model.text is None or model.num_class_tokens:
        raise UserError(
            "task=text_image trains a model of text without classes\n"
            "  set model.text, such as model.text.vocabulary=512, and model.class_tokens=0; "
            "or task=class_to_image"
        )
    if experiment.objective.text is None:
        raise UserError("task=text_image needs objective.text\n  set it, such as objective.text.share=0.1")
    unread = [
        key
        for key, given in (
            ("ar_steps", experiment.evaluation.ar_steps),
            ("while_training", experiment.evaluation.while_training),
        )
        if given
    ]
    if unread:
        raise UserError(
            f"task=text_image does not read evaluation.{unread[0]}\n"
            f"  leave it out, and measure checkpoints afterwards: causalfusion evaluate RUN"
        )
    return model


def check_share(experiment: Experiment) -> None:
    """Check that every step has a text to learn, if any has.

    Raises:
        UserError: the global batch is too small for the share of texts behind images.
    """
    assert experiment.objective.text is not None
    share, batch = experiment.objective.text.share, experiment.train.global_batch_size
    if 0 < Fraction(str(share)) * batch < 1:
        raise UserError(
            f"objective.text.share {share} of a global batch of {batch} images is less than one image: "
            f"some steps would have no text to learn\n"
            f"  set train.global_batch_size to at least {math.ceil(1 / Fraction(str(share)))}"
        )


def check_captioned_validation(experiment: Experiment, folder: Path) -> None:
    """Check the validation shards, unless they are written together with those of training.

    Raises:
        UserError: they cannot be opened, do not fit the model, or have no captions.
    """
    data = experiment.data
    is_written = data.prepare in ("captions", "mnist-captions") and folder == validation_folder(data.path)
    if is_written and not folder.exists():
        return
    try:
        validation = open_shards(folder, hashes=False).usable
    except UserError as error:
        raise UserError(f"data.validation: {error}") from error
    check_model_fits(validation, experiment.model, folder)
    if not validation.captions:
        raise UserError(
            f"data.validation: the shards in {folder} have no captions\n"
            f"  set data.validation to shards that have them, or leave it out"
        )
    check_captions(folder, validation)
