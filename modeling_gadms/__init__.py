"""GA-DMS text-to-person retrieval; importing this package registers its classes with the Auto classes."""

from .requirements_gadms import MINIMUM_TRANSFORMERS  # noqa: F401 - first, or the next imports fail without a cure

# isort: split
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

from .configuration_gadms import GADMSConfig
from .image_processing_gadms import GADMSImageProcessor
from .modeling_gadms import GADMSForPreTraining, GADMSModel
from .processing_gadms import GADMSProcessor
from .tokenization_gadms import GADMSTokenizer

AutoConfig.register("gadms", GADMSConfig)
AutoModel.register(GADMSConfig, GADMSModel)
AutoModelForPreTraining.register(GADMSConfig, GADMSForPreTraining)
AutoModelForZeroShotImageClassification.register(GADMSConfig, GADMSModel)
AutoTokenizer.register(GADMSConfig, GADMSTokenizer)
AutoImageProcessor.register(GADMSConfig, image_processor_classes={"pil": GADMSImageProcessor})
AutoProcessor.register(GADMSConfig, GADMSProcessor)

__all__ = [
    "GADMSConfig",
    "GADMSForPreTraining",
    "GADMSImageProcessor",
    "GADMSModel",
    "GADMSProcessor",
    "GADMSTokenizer",
]
