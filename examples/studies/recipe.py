"""The recipe that the cells of a study share, on a GPU where there is one."""

from typing import Any

import datasets
from cell_masks import StudyArguments
from starting_point import DEVICE

from modeling_gadms.modeling_gadms import GADMSForPreTraining
from modeling_gadms.processing_gadms import GADMSProcessor
from modeling_gadms.training.trainer import GADMSTrainer


def recipe_trainer(
    cell: str,
    seed: int,
    model: GADMSForPreTraining,
    processor: GADMSProcessor,
    train: datasets.Dataset,
    test: datasets.Dataset,
    **options: Any,
) -> GADMSTrainer:
    """The recipe that all cells share; `options` are further training arguments."""
    training = StudyArguments(
        cell=cell,
        seed=seed,
        mtp_weight=0.0 if cell.endswith("SDM") else 0.4,
        adam_epsilon=1e-8,
        warmup_epochs=0.5,
        crop_padding=2,
        erasing_probability=0.0,
        per_device_eval_batch_size=128,
        save_strategy="no",
        use_cpu=DEVICE == "cpu",
        disable_tqdm=True,
        **options,
    )
    return GADMSTrainer(model, training, processor, train_dataset=train, eval_dataset=test)
