"""GA-DMS: two towers for non-square pedestrian images, and the decoder that pre-training adds to them."""

from .requirements_gadms import MINIMUM_TRANSFORMERS  # noqa: F401 - first, or the next imports fail without a cure

# isort: split
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPPreTrainedModel,
    CLIPTextConfig,
    CLIPTextModel,
    MetaClip2TextModel,
    PreTrainedConfig,
    SiglipTextModel,
    Tipsv2TextModel,
)
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoder,
    CLIPOutput,
    eager_attention_forward,
    image_text_contrastive_loss,
)
from transformers.utils import ModelOutput, can_return_tuple

from .chunk_gadms import BatchChunk
from .configuration_gadms import GADMSConfig
from .distributed_gadms import gather_batch, mean_over_processes, num_processes, undivided
from .losses_gadms import IGNORED, cosines, mtp_loss, sdm_loss, sigmoid_loss, swapped_logits
from .masking_gadms import DualMasking, MaskedCaptions, Masking, draw_uniforms, mask_captions, places_to_predict
from .matching_gadms import NUM_NEGATIVE_DRAWS, hard_negatives, matching_loss
from .released_scores_gadms import released_scores
from .rotary_vision_gadms import GADMSEva02VisionModel, GADMSPECoreVisionModel
from .starting_towers_gadms import (
    STARTS,
    config_of_source,
    config_of_towers,
    fitted_weights,
    known_family,
    leave_out,
    quiet_loading,
    refuse_missing_weights,
)
from .token_scores_gadms import gradient_attention_scores
from .tower_tokenizers_gadms import HUB_OPTIONS, tower_tokenizer
from .towers_gadms import (
    attention_mask as tower_mask,
)
from .towers_gadms import (
    caption_tokens,
    eos_positions,
    image_states,
    on_host,
    pool,
    refuse_left_padding,
    valid_tokens,
    whole_captions,
)
from .vision_gadms import (
    GADMSSiglipVisionModel,
    GADMSTipsv2VisionModel,
    GADMSVisionModel,
    WholeInitialization,
    patches_kept,
    resize_position_table,
)

# text and image tower of each kind of `configuration_gadms.TOWERS`
TOWERS: dict[str, tuple[Any, Any]] = {
    "clip": (CLIPTextModel, GADMSVisionModel),
    "eva02": (CLIPTextModel, GADMSEva02VisionModel),
    "pe_core": (CLIPTextModel, GADMSPECoreVisionModel),
    "metaclip_2": (MetaClip2TextModel, GADMSVisionModel),
    "siglip": (SiglipTextModel, GADMSSiglipVisionModel),
    "tipsv2": (Tipsv2TextModel, GADMSTipsv2VisionModel),
}


class GADMSPreTrainedModel(WholeInitialization, CLIPPreTrainedModel):
    """Base of the models below: configuration, weight initialisation, and starting from a CLIP."""

    config: GADMSConfig  # type: ignore[assignment]  # the parent's is CLIP's
    base_model_prefix = "gadms"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GADMSModel):
            for projection in (module.text_projection, module.visual_projection):
                if isinstance(projection, nn.Linear):
                    init.normal_(projection.weight, std=projection.in_features**-0.5)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass: the name that peft asks for.

        transformers answers to it with a warning of its renaming, which users of adapters can do nothing about.
        """
        return self.is_activation_checkpointing

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        # whichever class saves, the folder can be loaded as either with `trust_remote_code=True`
        self.config.auto_map = {
            "AutoConfig": "configuration_gadms.GADMSConfig",
            "AutoModel": "modeling_gadms.GADMSModel",
            "AutoModelForZeroShotImageClassification": "modeling_gadms.GADMSModel",
            "AutoModelForPreTraining": "modeling_gadms.GADMSForPreTraining",
        }
        kind = type(self)
        if kind.__module__.startswith("torch."):  # FSDP2's own class before this one; its file would go with the model
            kind.__module__ = next(
                each for each in kind.__mro__ if not each.__module__.startswith("torch.")
            ).__module__
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_clip_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        image_size: tuple[int, int] = (384, 128),
        **kwargs: Any,
    ) -> Self:
        """Start from a Hugging Face CLIP; the decoder, if the class has one, is new.

        Every weight is CLIP's own, except the position table of the image tower, which is resized bilinearly to the
        new grid. CLIP's `logit_scale` is dropped: the temperature of GA-DMS is constant.

        Args:
            pretrained_model_name_or_path (`str`): Hub id or folder, for example `"openai/clip-vit-base-patch16"`.
            image_size (`tuple[int, int]`): height and width in pixels.
            kwargs: passed to [`CLIPModel.from_pretrained`] (`dtype`, `revision`, `attn_implementation`, ...).

        Raises:
            ValueError: the folder or Hub id holds another kind of model, or an incomplete CLIP.
        """
        found = CLIPConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)[0].get("model_type")
        if found != "clip":
            raise ValueError(
                f"{pretrained_model_name_or_path} is not a CLIP model with both towers, but of type {found}; a GA-DMS "
                "model is loaded with from_pretrained, other towers with from_pretrained_towers"
            )
        with quiet_loading():
            loaded = CLIPModel.from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        clip, report = cast(tuple[CLIPModel, dict[str, Any]], loaded)  # a pair, where the loading info is asked for
        refuse_missing_weights(pretrained_model_name_or_path, "CLIP", report["missing_keys"])

        of_clip = clip.config.to_dict()
        config = GADMSConfig(
            text_config=of_clip["text_config"],
            vision_config={**of_clip["vision_config"], "image_size": tuple(image_size)},
            projection_dim=of_clip["projection_dim"],
        )
        model = cls._from_config(config, dtype=clip.dtype, attn_implementation=clip.config._attn_implementation)

        weights = clip.state_dict()
        del weights["logit_scale"]
        table = "vision_model.embeddings.position_embedding.weight"
        weights[table] = resize_position_table(weights[table], config.vision_config.grid)
        model.base_model.load_state_dict(weights)
        return model.eval()

    @classmethod
    def from_pretrained_towers(
        cls,
        pretrained_model_name_or_path: str,
        image_size: tuple[int, int] = (384, 128),
        **kwargs: Any,
    ) -> Self:
        """Start from the towers of a CLIP, MetaCLIP 2, SigLIP, SigLIP 2, FG-CLIP 2 or TIPSv2; the decoder is new.

        As [`from_clip_pretrained`], which is called for a CLIP. A SigLIP 2 for images of any shape (NaFlex) becomes
        one of this shape: with its position table resized as it does itself, embeddings are the same. The table is
        resized once, here: for images of another shape start again at that size, for `interpolate_pos_encoding=True`
        resizes what is resized already, and embeddings then differ somewhat from SigLIP 2's. An FG-CLIP 2 embeds
        images and captions of up to 64 tokens as SigLIP 2 does (its `walk_type="short"`); what it has for longer
        captions and for regions is left out, which a warning names. A vocabulary without a mask token gets one, whose
        embedding is the mean of all.

        Args:
            pretrained_model_name_or_path (`str`): Hub id or folder of a model and its tokenizer, for example
                `"google/siglip2-base-patch16-224"`.
            image_size (`tuple[int, int]`): height and width in pixels, multiples of the patch: `(378, 126)` in
                patches of 14.
            kwargs: passed to [`AutoModel.from_pretrained`] (`dtype`, `revision`, `attn_implementation`, ...).

        Raises:
            ValueError: the folder or Hub id holds another kind of model, an incomplete one, or a tokenizer that does
                not belong to it; or patches do not divide the image size.
        """
        name = pretrained_model_name_or_path
        found = known_family(name, PreTrainedConfig.get_config_dict(name, **kwargs)[0].get("model_type"))
        if found == "clip":
            return cls.from_clip_pretrained(name, image_size, **kwargs)
        hub_kwargs = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        with quiet_loading():
            source = config_of_source(name, **hub_kwargs)
            loaded = AutoModel.from_pretrained(name, config=source, output_loading_info=True, **kwargs)
        towers, report = cast(tuple[Any, dict[str, Any]], loaded)
        refuse_missing_weights(name, found, report["missing_keys"], len(towers.state_dict()))
        if found == "fgclip2":
            leave_out(name, set(report["unexpected_keys"]))

        tokenizer = tower_tokenizer(name, **hub_kwargs)
        config = config_of_towers(STARTS[found], source, image_size, tokenizer)
        model = cls._from_config(config, dtype=towers.dtype, attn_implementation=towers.config._attn_implementation)
        weights = fitted_weights(source.model_type, towers.state_dict(), config)
        model.base_model.load_state_dict(weights)
        return model.eval()


def pooled(outputs: BaseModelOutputWithPooling) -> torch.Tensor:
    """The embedding among the outputs of a tower, whose class declares it optional."""
    assert outputs.pooler_output is not None
    return outputs.pooler_output


class GADMSModel(GADMSPreTrainedModel):
    """The person retriever: embeds pedestrian images and descriptions in one space.

    Differs from [`CLIPModel`] in the non-square image tower, in a temperature that is a constant of the configuration,
    in `word_contributions`, which says what each word did to a match, and in `token_scores`, the signal of training.
    """

    # checkpoints of pre-training load here without their decoder, those of fine-tuning without their classifier too
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^classifier\."]

    def __init__(self, config: GADMSConfig) -> None:
        super().__init__(config)
        text_model, vision_model = TOWERS[config.tower]
        self.text_model = text_model._from_config(config.text_config)
        self.vision_model = vision_model._from_config(config.vision_config)
        # SigLIP's and TIPSv2's image towers, and TIPSv2's text tower, are in the joint space already
        self.text_projection: nn.Module = nn.Identity()
        self.visual_projection: nn.Module = nn.Identity()
        if config.tower == "siglip":
            self.text_model.head = nn.Identity()  # it is the projection
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        elif config.tower != "tipsv2":
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
            has_bias = config.tower in ("eva02", "pe_core")
            self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, has_bias)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Embed descriptions. With `return_dict=False` a tuple, as everywhere in transformers.

        Args:
            input_ids (`torch.Tensor` of shape `(B, T)`): token ids, padded on the right.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): accepted from processors but not needed:
                what the tower may see follows from the ids. It is only checked.

        The embedding does not depend on how far a caption is padded: CLIP's and MetaCLIP 2's is read at EOS, before
        any padding, TIPSv2's is a mean over the caption's own tokens, and SigLIP's captions are always padded to the
        context length here, for that tower attends to padding and its embedding without it is another one.

        Returns:
            [`BaseModelOutputWithPooling`]: `pooler_output` `(B, projection_dim)` is the embedding, not normalised;
            `last_hidden_state` `(B, T, hidden_size)` holds the tower's tokens.

        Raises:
            ValueError: captions are padded on the left, or the mask hides some of their tokens.
        """
        text_config = self.config.text_config
        refuse_left_padding(input_ids, attention_mask, text_config)
        input_ids = whole_captions(input_ids, text_config)
        mask = tower_mask(input_ids, text_config)
        outputs = self.text_model(input_ids, attention_mask=mask, return_dict=True, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Embed images: `(B, 3, height, width)` -> `pooler_output` `(B, projection_dim)`, not normalised.

        With `interpolate_pos_encoding=True` images of any size in whole patches are taken. The model was not trained
        on them: expect less of it.

        Raises:
            ValueError: the images are not of the model's size, or, interpolating, not of whole patches.
        """
        outputs = self.vision_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> CLIPOutput:
        """Similarity of every caption with every image; of captions or images alone, their embeddings.

        Args:
            input_ids (`torch.Tensor` of shape `(captions, T)`, *optional*): as in `get_text_features`.
            pixel_values (`torch.Tensor` of shape `(images, 3, height, width)`, *optional*): as in
                `get_image_features`.
            attention_mask, position_ids: of the captions.
            return_loss (`bool`, *optional*): also CLIP's contrastive loss over pairs in order, as in [`CLIPModel`];
                GA-DMS itself is trained by [`GADMSForPreTraining`].
            interpolate_pos_encoding (`bool`): as in `get_image_features`.

        Returns:
            [`CLIPOutput`]: `logits_per_text` `(captions, images)`, cosine / temperature; `logits_per_image`, its
            transpose; `text_embeds` and `image_embeds`, of unit norm; the outputs of both towers. What needs the
            other half is `None` where it is not given.

        Raises:
            ValueError: neither captions nor images, or a loss of captions and images that are not pairs.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("neither input_ids nor pixel_values are given: nothing to embed")
        vision_outputs = text_outputs = image_embeds = text_embeds = logits_per_text = loss = None
        if pixel_values is not None:
            vision_outputs = self.get_image_features(
                pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
            )
            image_embeds = F.normalize(pooled(vision_outputs), dim=-1)
        if input_ids is not None:
            text_outputs = self.get_text_features(
                input_ids, attention_mask, position_ids=position_ids, return_dict=True, **kwargs
            )
            text_embeds = F.normalize(pooled(text_outputs), dim=-1)
        if text_embeds is not None and image_embeds is not None:
            logits_per_text = text_embeds @ image_embeds.T.to(text_embeds.device) / self.config.temperature
        if return_loss:
            if logits_per_text is None or logits_per_text.shape[0] != logits_per_text.shape[1]:
                raise ValueError("return_loss=True takes pairs: input_ids and pixel_values, a caption for each image")
            loss = image_text_contrastive_loss(logits_per_text)
        return CLIPOutput(
            loss=loss,
            logits_per_image=None if logits_per_text is None else logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,  # type: ignore[arg-type]  # None where CLIP has none
            vision_model_output=vision_outputs,  # type: ignore[arg-type]
        )

    @torch.no_grad()
    def word_contributions(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        word_ids: torch.Tensor | None = None,
        batch_size: int = 256,
    ) -> torch.Tensor:
        """What each word does to a match: how far the cosine of image and caption drops when the word is masked.

        Exact: the text tower runs again on each caption with one word replaced by the mask token, which it knows from
        pre-training. It costs one text row for each word and one for the whole caption, so some 25 times the text
        tower's part of an ordinary comparison for 24 words; the image tower runs once. Words that say the same may
        cover for each other: each is masked alone.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`): images.
            input_ids (`torch.Tensor` of shape `(B, T)`): one caption per image.
            attention_mask: as in `get_text_features`.
            word_ids (`torch.Tensor` of shape `(B, T)`, *optional*): int64, equal for the tokens of one word, which are
                masked together, as `processor.tokenizer(caption).word_ids()` numbers them; what it says of BOS, EOS
                and padding is ignored. By default each token is a word.
            batch_size (`int`): text rows in one pass of the tower.

        Returns:
            `torch.Tensor` of shape `(B, T)`, float32, between -2 and 2: positive where the word speaks for the image,
            negative where the match is better without it; the same at each token of a word; 0 at BOS, EOS and padding.

        Raises:
            ValueError: images and captions differ in number, captions are padded on the left, or `word_ids` is of
                another shape than `input_ids`.
        """
        refuse_left_padding(input_ids, attention_mask, self.config.text_config)
        if len(pixel_values) != len(input_ids):
            raise ValueError(f"{len(pixel_values)} images for {len(input_ids)} captions; give one image per caption")
        if word_ids is None:
            word_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
        elif word_ids.shape != input_ids.shape:
            raise ValueError(f"word_ids are {tuple(word_ids.shape)} but input_ids {tuple(input_ids.shape)}")
        image_embeds = pooled(self.get_image_features(pixel_values, return_dict=True)).float()

        # a row for the first token of each word, which hides all tokens of the word
        valid = valid_tokens(input_ids, self.config.text_config)
        same_word = (word_ids[:, :, None] == word_ids[:, None, :]) & valid[:, :, None] & valid[:, None, :]
        is_first = valid & ~same_word.tril(-1).any(dim=-1)
        rows, firsts = is_first.nonzero(as_tuple=True)
        hidden = same_word[rows, firsts]
        drops = self.drops_without(image_embeds, input_ids, rows, hidden, batch_size)[0][:, None] * hidden
        return drops.new_zeros(input_ids.shape).index_add_(0, rows, drops)

    def drops_without(
        self,
        image_embeds: torch.Tensor,
        input_ids: torch.Tensor,
        rows: torch.Tensor,
        hidden: torch.Tensor,
        batch_size: int = 256,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How far the cosine of an image and its caption drops when some tokens of the caption are masked.

        What [`word_contributions`] computes, for tokens and images of the caller's choice: images that several
        captions share are encoded once.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, D)`): the image of each caption.
            input_ids (`torch.Tensor` of shape `(B, T)`): captions.
            rows (`torch.Tensor` of shape `(R,)`): int64, the caption of each drop.
            hidden (`torch.Tensor` of shape `(R, T)`): bool, the tokens that are masked for it.
            batch_size (`int`): text rows in one pass of the tower.

        Returns:
            the drops `(R,)` and the cosines of the whole captions `(B,)`, float32.
        """
        masked = input_ids[rows].masked_fill(hidden, self.config.mask_token_id)
        images = torch.cat([torch.arange(len(input_ids), device=input_ids.device), rows])
        longest = int(eos_positions(input_ids, self.config.text_config).max()) + 1
        captions = torch.cat([input_ids, masked])[:, :longest]
        cosines = [
            F.cosine_similarity(pooled(self.get_text_features(part, return_dict=True)).float(), image_embeds[image])
            for part, image in zip(captions.split(batch_size), images.split(batch_size), strict=True)
        ]
        whole, without = torch.cat(cosines).split([len(input_ids), len(rows)])
        return whole[rows] - without, whole

    def token_scores(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_layers: int | None = None,
        recipe: str = "paper",
    ) -> torch.Tensor:
        """The paper's training signal, from which masks are drawn: the gradient-attention score of every token.

        It does not explain a match (for that, `word_contributions`): where 30 % of the attribute words were false, it
        told false ones from true ones with an AUROC of 0.56 (`examples/studies/results/noise_detection.md`), and about
        half of the tokens score exactly 0.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`): images.
            input_ids (`torch.Tensor` of shape `(B, T)`): one caption per image.
            attention_mask: as in `get_text_features`.
            num_layers (`int`, *optional*): last text layers used; two thirds of them by default (8 of 12), the last
                alone of a bidirectional tower.
            recipe (`str`): `"paper"`, or `"released"` for the released code's, which depends on the batch.

        Returns:
            `torch.Tensor` of shape `(B, T)`, float32, in [0, 1]; 0 at BOS, EOS and padding. See
            `token_scores_gadms.gradient_attention_scores` and `released_scores_gadms.released_scores`.

        Raises:
            ValueError: the recipe is unknown, the text tower has no `num_layers` layers, images and captions differ
                in number, or captions are padded on the left.
        """
        refuse_left_padding(input_ids, attention_mask, self.config.text_config)
        if recipe not in ("paper", "released"):
            raise ValueError(f'recipe must be "paper" or "released"; got {recipe!r}')
        score = gradient_attention_scores if recipe == "paper" else released_scores
        with torch.no_grad():
            image_embeds = pooled(self.get_image_features(pixel_values, return_dict=True))
        return score(self.text_model, self.text_projection, image_embeds, input_ids, num_layers)

    def project_image_tokens(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """All tokens of the image tower in the joint space, CLS first: `(B, 1 + patches, projection_dim)`.

        Of a tower without CLS the image's embedding is first; see `towers_gadms.image_states`.
        """
        return self.visual_projection(image_states(self.vision_model, last_hidden_state))

    def project_text_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """All tokens of captions `(B, T)`, whole as in `towers_gadms.whole_captions`: `(B, T, projection_dim)`."""
        mask = tower_mask(input_ids, self.config.text_config)
        return self.text_projection(self.text_model(input_ids, attention_mask=mask).last_hidden_state)


class GADMSCrossAttention(CLIPAttention):
    """CLIP's attention, with queries from one sequence and keys and values from another."""

    def forward(  # type: ignore[override]  # two sequences, no mask
        self, hidden_states: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        """`(B, T, D)` queries and `(B, S, D)` context -> `(B, T, D)`."""
        states = (self.q_proj(hidden_states), self.k_proj(context), self.v_proj(context))
        query, key, value = (state.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for state in states)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, _ = attend(self, query, key, value, None, scaling=self.scale)
        return self.out_proj(output.flatten(2))


class GADMSDecoder(WholeInitialization, CLIPPreTrainedModel):
    """Predicts masked caption tokens from the image: cross-attention, CLIP blocks over the text, vocabulary head."""

    config: CLIPTextConfig  # type: ignore[assignment]  # as in CLIPTextModel

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        width, eps = config.hidden_size, cast(float, config.layer_norm_eps)  # never None in a configuration of ours
        self.text_norm = nn.LayerNorm(width, eps=eps)
        self.image_norm = nn.LayerNorm(width, eps=eps)
        self.cross_attention = GADMSCrossAttention(config)
        self.encoder = CLIPEncoder(config)  # type: ignore[arg-type]  # annotated for the whole CLIP's configuration
        self.final_norm = nn.LayerNorm(width, eps=eps)
        self.dense = nn.Linear(width, width)
        self.activation = ACT2FN["quick_gelu"]
        self.head_norm = nn.LayerNorm(width, eps=eps)
        self.vocabulary = nn.Linear(width, config.vocab_size)
        if config.matching_head:
            self.matching = nn.Linear(width, 2)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        width = self.config.hidden_size
        output_std = width**-0.5 * (2 * self.config.num_hidden_layers) ** -0.5
        if isinstance(module, GADMSCrossAttention):  # as in the released code
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                init.normal_(projection.weight, std=width**-0.5)
            init.normal_(module.out_proj.weight, std=output_std)
        elif isinstance(module, GADMSDecoder):
            init.normal_(module.dense.weight, std=(2 * width) ** -0.5)
            init.normal_(module.vocabulary.weight, std=output_std)

    def forward(
        self,
        text_tokens: torch.Tensor,
        image_tokens: torch.Tensor,
        attention_mask: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Logits at the chosen positions only: at all of them the vocabulary layer would dominate the cost.

        Args:
            text_tokens (`torch.Tensor` of shape `(B, T, D)`): projected tokens of the prediction view.
            image_tokens (`torch.Tensor` of shape `(B, S, D)`): projected tokens of the image.
            attention_mask (`torch.Tensor` of shape `(B, T)`): True at the caption's own tokens; the rest is ignored.
            positions (`torch.Tensor` of shape `(B, T)`): bool, tokens to predict; or int64 `(M,)`, their places in the
                flattened `(B, T)`.

        Returns:
            `torch.Tensor` of shape `(positions.sum(), vocab_size)`, in row-major order of `positions`, or
            `(M, vocab_size)`.
        """
        # no residual around the cross-attention: predictions must come from the image
        hidden_states = self._read(self._seen(text_tokens, image_tokens), attention_mask)
        if positions.dtype != torch.bool:
            hidden_states = hidden_states.flatten(0, 1)
        hidden_states = self.final_norm(hidden_states[positions])
        return self.vocabulary(self.head_norm(self.activation(self.dense(hidden_states))))

    def compare(
        self, text_tokens: torch.Tensor, image_tokens: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """What the same layers make of each token in the light of an image, to tell whether both belong together.

        Unlike in prediction there is a residual around the cross-attention: a word that the image does not show is
        told from what it shows by comparing the two, so both have to go on.

        Args:
            text_tokens (`torch.Tensor` of shape `(B, T, D)`): projected tokens of the caption.
            image_tokens (`torch.Tensor` of shape `(B, S, D)`): projected tokens of the image.
            attention_mask (`torch.Tensor` of shape `(B, T)`): True at the caption's own tokens; the rest is ignored.

        Returns:
            `torch.Tensor` of shape `(B, T, D)`.
        """
        hidden_states = text_tokens + self._seen(text_tokens, image_tokens)
        return self.final_norm(self._read(hidden_states, attention_mask))

    def _seen(self, text_tokens: torch.Tensor, image_tokens: torch.Tensor) -> torch.Tensor:
        """What each token of a caption gathers from its image: `(B, T, D)`."""
        return self.cross_attention(self.text_norm(text_tokens), self.image_norm(image_tokens))

    def _read(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The blocks over the tokens of captions: `(B, T, D)` -> `(B, T, D)`."""
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            allow_is_bidirectional_skip=on_host(hidden_states),  # it looks whether all is attended to
        )
        return self.encoder(inputs_embeds=hidden_states, attention_mask=mask).last_hidden_state


@dataclass
class GADMSForPreTrainingOutput(ModelOutput):
    """
    loss (`torch.Tensor`): scalar, SDM, or in its place the sigmoid loss, + weight * MTP; its mean over processes is
        that of their joint batch.
    sdm_loss (`torch.Tensor`): scalar, similarity distribution matching.
    sigmoid_loss (`torch.Tensor`): scalar, in its place.
    mtp_loss (`torch.Tensor`): scalar, masked token prediction.
    matching_loss (`torch.Tensor`): scalar, image-text matching.
    hidden_rate (`torch.Tensor`): share of valid tokens hidden before alignment, in this process.
    prediction_rate (`torch.Tensor`): share of valid tokens to predict, in this process.
    no_valid_tokens (`torch.Tensor`): share of captions without any token between BOS and EOS, in this process.
    token_scores (`torch.Tensor` of shape `(B, T)`): scores that the masks were drawn from, if any.
    image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): image embeddings, not normalised.
    text_embeds (`torch.Tensor` of shape `(B, projection_dim)`): embeddings of the captions as aligned by SDM.
    """

    loss: torch.Tensor | None = None
    sdm_loss: torch.Tensor | None = None
    sigmoid_loss: torch.Tensor | None = None
    mtp_loss: torch.Tensor | None = None
    matching_loss: torch.Tensor | None = None
    hidden_rate: torch.Tensor | None = None
    prediction_rate: torch.Tensor | None = None
    no_valid_tokens: torch.Tensor | None = None
    token_scores: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


@dataclass
class EncodedPairs:
    """Outputs of the towers for a batch of pairs: everything the losses need but the decoder's logits.

    Attributes:
        image_tokens (`torch.Tensor` of shape `(B, 1 + patches, projection_dim)`): projected image tokens.
        image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): the first of them.
        text_embeds (`torch.Tensor` of shape `(B, projection_dim)`): embeddings of the captions' noise view.
        aligned_tokens (`torch.Tensor` of shape `(B, T, projection_dim)`): its projected tokens.
        text_tokens (`torch.Tensor` of shape `(B, T, projection_dim)`): projected tokens of the prediction view; where
            the decoder attends padding, `T` is the context length, also in the views.
        views ([`MaskedCaptions`]): both views. Without masks `text_tokens`, `views` and `token_scores` are `None`.
        token_scores (`torch.Tensor` of shape `(B, T)`): scores that the masks were drawn from, if any.
    """

    image_tokens: torch.Tensor
    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    aligned_tokens: torch.Tensor
    text_tokens: torch.Tensor | None = None
    views: MaskedCaptions | None = None
    token_scores: torch.Tensor | None = None


class GADMSForPreTraining(GADMSPreTrainedModel):
    """A [`GADMSModel`] with the decoder, and the complete training step of the paper."""

    # checkpoints of fine-tuning load here without their classifier
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: GADMSConfig) -> None:
        super().__init__(config)
        self.gadms = GADMSModel(config)
        self.decoder = GADMSDecoder._from_config(config.decoder_config())
        self.score_compiler: str | None = None  # backend of torch.compile for the layers of the score
        self.post_init()

    def encode_pairs(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        mask_uniforms: torch.Tensor | None = None,
        masking: Masking | None = DualMasking(),  # noqa: B008 - frozen
        kept_patches: torch.Tensor | None = None,
    ) -> EncodedPairs:
        """Score the tokens, draw both masks, and run the towers: once over the images, once over both views.

        The arguments are those of `forward`.
        """
        gadms, text_config = self.gadms, self.config.text_config
        input_ids = whole_captions(input_ids, text_config)
        with patches_kept(gadms.vision_model, kept_patches):
            image_hidden = gadms.vision_model(pixel_values).last_hidden_state
        image_tokens = gadms.project_image_tokens(image_hidden)
        image_embeds = image_tokens[:, 0]
        if masking is None:
            tokens = gadms.project_text_tokens(input_ids)
            return EncodedPairs(image_tokens, image_embeds, pool(tokens, input_ids, text_config), tokens)

        scores = None
        if masking.uses_scores:
            scores = self.score_captions(image_embeds, input_ids)
        if mask_uniforms is None:
            seed = int(torch.randint(2**62, ()).item())
            generator = torch.Generator(input_ids.device).manual_seed(seed)
            mask_uniforms = draw_uniforms(input_ids.shape[0], input_ids.shape[1], generator)
        views = mask_captions(input_ids, scores, mask_uniforms, masking, self.config.mask_token_id, text_config)
        if self.config.decoder_attends_padding:
            views = views.padded(self.config.text_config.max_position_embeddings)

        if masking.in_place:  # both views are the same
            text_tokens = noise_tokens = gadms.project_text_tokens(views.prediction_input_ids)
        else:
            both = torch.cat([views.noise_input_ids, views.prediction_input_ids])
            noise_tokens, text_tokens = gadms.project_text_tokens(both).chunk(2)
        text_embeds = pool(noise_tokens, input_ids, text_config)
        return EncodedPairs(image_tokens, image_embeds, text_embeds, noise_tokens, text_tokens, views, scores)

    def score_captions(self, image_embeds: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Token scores that the masks are drawn from, by the paper's recipe. Override this to train with another.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): image embeddings, not normalised.
            input_ids (`torch.Tensor` of shape `(B, T)`): their captions.

        Returns:
            `torch.Tensor` of shape `(B, T)`, float32, in [0, 1] and without gradient; 0 at BOS, EOS and padding.
        """
        gadms = self.gadms
        with undivided(gadms.text_model):
            return gradient_attention_scores(
                gadms.text_model, gadms.text_projection, image_embeds, input_ids, compiler=self.score_compiler
            )

    def joint_alignment_loss(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        person_ids: torch.Tensor,
        sigmoid_bias: float | None = None,
        swap_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """SDM over the pairs of all processes or, with a bias, the sigmoid loss; see `losses_gadms`.

        Of the sigmoid loss each process computes the rows of its own images, which take its share of the memory; the
        mean over processes, in value and in gradient, is the loss of all. Of swapped captions, of which each image has
        its own, nothing but the logits `(B, K)` travels.
        """
        if sigmoid_bias is not None:
            texts, ids = gather_batch(text_embeds), gather_batch(person_ids)
            return sigmoid_loss(image_embeds, texts, person_ids, ids, self.config.temperature, sigmoid_bias)
        return sdm_loss(
            gather_batch(image_embeds),
            gather_batch(text_embeds),
            gather_batch(person_ids),
            self.config.temperature,
            swap_logits=None if swap_logits is None else gather_batch(swap_logits),
        )

    def swap_logits(
        self, image_embeds: torch.Tensor, swap_input_ids: torch.Tensor, swap_weights: torch.Tensor
    ) -> torch.Tensor:
        """Logits of each image and its own swapped captions, from one pass over all copies; see `losses_gadms`.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, D)`): image embeddings, not normalised.
            swap_input_ids (`torch.Tensor` of shape `(B, K, T)`): copies of each image's caption with a word swapped.
            swap_weights (`torch.Tensor` of shape `(B, K)`): how much each copy counts, in [0, 1].

        Returns:
            `torch.Tensor` of shape `(B, K)`, float32.
        """
        text_config = self.config.text_config
        copies = whole_captions(swap_input_ids.flatten(0, 1), text_config)
        embeds = pool(self.gadms.project_text_tokens(copies), copies, text_config)
        embeds = embeds.unflatten(0, swap_weights.shape)
        return swapped_logits(image_embeds, embeds, swap_weights, self.config.temperature)

    def set_matching_head(self, wanted: bool) -> None:
        """Add the output that says whether an image and a caption belong together, or leave it out.

        A new one is drawn from torch's generator; one that is there stays as it is.
        """
        if wanted and not self.config.matching_head:
            self.decoder.matching = nn.Linear(self.config.projection_dim, 2).to(self.device, self.dtype)
            nn.init.normal_(self.decoder.matching.weight, std=0.02)  # BERT's, as of every new layer of transformers
            nn.init.zeros_(self.decoder.matching.bias)
        elif not wanted and self.config.matching_head:
            del self.decoder.matching
        self.config.matching_head = self.decoder.config.matching_head = wanted

    def match(self, input_ids: torch.Tensor, text_tokens: torch.Tensor, image_tokens: torch.Tensor) -> torch.Tensor:
        """Whether each caption describes its image: logits of no match and of a match.

        They depend on the pair alone, neither on padding nor on the other pairs, also where the decoder predicts words
        in the sight of padding.

        Args:
            input_ids (`torch.Tensor` of shape `(B, T)`): captions, whole as in `towers_gadms.whole_captions`.
            text_tokens (`torch.Tensor` of shape `(B, T, D)`): from [`GADMSModel.project_text_tokens`].
            image_tokens (`torch.Tensor` of shape `(B, S, D)`): from [`GADMSModel.project_image_tokens`].

        Returns:
            `torch.Tensor` of shape `(B, 2)`. Their difference is the log odds of a match.

        Raises:
            ValueError: the model has no matching head.
        """
        if not self.config.matching_head:
            raise ValueError("the model has no matching head: train one with matching_weight above 0")
        text_config = self.config.text_config
        states = self.decoder.compare(text_tokens, image_tokens, caption_tokens(input_ids, text_config))
        # the product with the image's own state begins as a weighted cosine, from which a new head learns sooner
        image = self.decoder.image_norm(image_tokens[:, 0])
        return self.decoder.matching(pool(states, input_ids, text_config) * image)

    def joint_matching_loss(
        self,
        pairs: EncodedPairs,
        input_ids: torch.Tensor,
        person_ids: torch.Tensor,
        uniforms: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image-text matching of this process's pairs, with hard negatives among the pairs of all processes.

        Negatives come from the joint batch and not from each process's own part of it: the more there are to draw
        from, the harder they are, and only so does the loss not depend on the number of processes, as no other loss
        here does. Its price is that processes exchange all tokens, in bfloat16 0.3 MB a pair at ViT-B/16.

        Args:
            input_ids (`torch.Tensor` of shape `(B, T)`): the captions of `pairs.aligned_tokens`.
            person_ids (`torch.Tensor` of shape `(B,)`): int64; no negative has the identity of its pair.
            uniforms (`torch.Tensor` of shape `(B, NUM_NEGATIVE_DRAWS)`, *optional*): as in `forward`.

        Returns:
            `torch.Tensor`: scalar; its mean over processes, in value and in gradient, is the loss of all.
        """
        if uniforms is None:
            uniforms = torch.rand(len(person_ids), NUM_NEGATIVE_DRAWS).to(person_ids.device)
        texts, images, text_config = pairs.aligned_tokens, pairs.image_tokens, self.config.text_config
        if num_processes() > 1:  # whose captions differ in width
            missing = text_config.max_position_embeddings - texts.shape[1]
            texts = F.pad(texts, (0, 0, 0, missing))
            input_ids = F.pad(input_ids, (0, missing), value=text_config.pad_token_id)
        all_ids, all_texts, all_images = gather_batch(input_ids), gather_batch(texts), gather_batch(images)
        with torch.no_grad():
            all_persons = gather_batch(person_ids)
            to_captions = cosines(pairs.image_embeds, gather_batch(pairs.text_embeds)) / self.config.temperature
            to_images = cosines(pairs.text_embeds, gather_batch(pairs.image_embeds)) / self.config.temperature
            caption, has_caption = hard_negatives(to_captions, person_ids, all_persons, uniforms[:, 0])
            image, has_image = hard_negatives(to_images, person_ids, all_persons, uniforms[:, 1])
        logits = self.match(
            torch.cat([input_ids, input_ids, all_ids[caption]]),
            torch.cat([texts, texts, all_texts[caption]]),
            torch.cat([images, all_images[image], images]),
        )
        match = torch.ones_like(has_image)
        return matching_loss(
            logits, torch.cat([match, ~match, ~match]).long(), torch.cat([match, has_image, has_caption])
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        person_ids: torch.Tensor | None = None,
        mask_uniforms: torch.Tensor | None = None,
        masking: Masking | None = DualMasking(),  # noqa: B008 - frozen
        mtp_weight: float = 0.4,
        chunk: BatchChunk | None = None,
        sigmoid_bias: float | None = None,
        kept_patches: torch.Tensor | None = None,
        matching_weight: float = 0.0,
        negative_uniforms: torch.Tensor | None = None,
        swap_input_ids: torch.Tensor | None = None,
        swap_weights: torch.Tensor | None = None,
    ) -> GADMSForPreTrainingOutput:
        """One training step: score the tokens, draw both masks, align the noise view (SDM), predict tokens (MTP).

        The image tower runs once; both views pass through the text tower as one batch. With several processes all
        their embeddings enter SDM, so the loss is that of the joint batch.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`): images.
            input_ids (`torch.Tensor` of shape `(B, T)`): one caption per image, padded on the right.
            attention_mask: as in [`GADMSModel.get_text_features`].
            person_ids (`torch.Tensor` of shape `(B,)`, *optional*): int64; pairs with equal ids match. By default
                every image has an identity of its own.
            mask_uniforms (`torch.Tensor` of shape `(B, NUM_DRAWS, W)`, `W >= T`, *optional*): random numbers of the
                masks, from `masking_gadms.draw_uniforms`; by default drawn from a seed of torch's global generator.
            masking ([`DualMasking`] or [`RandomMasking`], *optional*): constants of the masks; `None` trains by SDM on
                whole captions, without scores or decoder.
            mtp_weight (`float`): weight of MTP in the loss.
            chunk ([`BatchChunk`], *optional*): set if these pairs are only a chunk of the batch; see
                `training.accumulation`.
            sigmoid_bias (`float`, *optional*): align by SigLIP's sigmoid loss with this bias, in place of SDM.
            kept_patches (`torch.Tensor` of shape `(B, K)`, *optional*): int64, the patches that the image tower sees;
                all by default.
            matching_weight (`float`): weight of image-text matching in the loss; see `joint_matching_loss`.
            negative_uniforms (`torch.Tensor` of shape `(B, NUM_NEGATIVE_DRAWS)`, *optional*): random numbers of its
                negatives, in [0, 1); by default from torch's generator.
            swap_input_ids (`torch.Tensor` of shape `(B, K, W)`, *optional*): copies of each caption with a word
                swapped, further negatives of its image in SDM; see `swap_logits`. They are not masked, so the captions
                that they are compared with should not be either.
            swap_weights (`torch.Tensor` of shape `(B, K)`, *optional*): float32, how much each copy counts; 1 by
                default.

        Raises:
            ValueError: captions are padded on the left, the images are not of the model's size, matching has a
                weight and the model no head for it, or there are swapped captions for another loss than SDM of a
                whole batch.
        """
        text_config = self.config.text_config
        refuse_left_padding(input_ids, attention_mask, text_config)
        input_ids = whole_captions(input_ids, text_config)
        if person_ids is None:
            rows = torch.arange(len(input_ids), device=input_ids.device)
            rank = torch.distributed.get_rank() if num_processes() > 1 else 0
            person_ids = rows + len(rows) * rank
        pairs = self.encode_pairs(pixel_values, input_ids, mask_uniforms, masking, kept_patches)
        embeds = {"image_embeds": pairs.image_embeds, "text_embeds": pairs.text_embeds}
        swaps = None
        if swap_input_ids is not None:
            if chunk is not None or sigmoid_bias is not None:
                raise ValueError("swapped captions are negatives of SDM of a whole batch, of no other loss")
            if swap_weights is None:
                swap_weights = torch.ones(swap_input_ids.shape[:2], device=input_ids.device)
            swaps = self.swap_logits(pairs.image_embeds, swap_input_ids, swap_weights)
        if chunk is None:
            alignment = self.joint_alignment_loss(
                **embeds, person_ids=person_ids, sigmoid_bias=sigmoid_bias, swap_logits=swaps
            )
        else:
            alignment = chunk.alignment_loss(**embeds)
        named = {"sdm_loss" if sigmoid_bias is None else "sigmoid_loss": alignment.detach()}
        loss = alignment
        if matching_weight:
            width = pairs.aligned_tokens.shape[1]
            captions = F.pad(input_ids, (0, width - input_ids.shape[1]), value=text_config.pad_token_id)
            matching = self.joint_matching_loss(pairs, captions, person_ids, negative_uniforms)
            loss = loss + matching_weight * matching
            named["matching_loss"] = matching.detach()
        views = pairs.views
        if views is None:
            return GADMSForPreTrainingOutput(loss=loss, **named, **embeds)

        # padding is hidden from the decoder, unless it was trained to see it; BOS and EOS are not
        width = views.prediction_mask.shape[1]
        padded = F.pad(input_ids, (0, width - input_ids.shape[1]))
        own_tokens = caption_tokens(padded, text_config)
        seen = torch.ones_like(own_tokens) if self.config.decoder_attends_padding else own_tokens
        assert masking is not None  # there are views
        places = places_to_predict(views.prediction_mask, masking)
        logits = self.decoder(pairs.text_tokens, pairs.image_tokens, seen, places)
        num_masked = mean_over_processes(views.prediction_mask.sum()) if chunk is None else chunk.num_masked
        labels = padded.masked_fill(~views.prediction_mask, IGNORED).flatten()[places]
        mtp = mtp_loss(logits, labels, num_masked)

        valid = valid_tokens(input_ids, text_config)
        num_valid = valid.sum().clamp_min(1)
        return GADMSForPreTrainingOutput(
            loss=loss + mtp_weight * mtp,
            **named,
            mtp_loss=mtp.detach(),
            hidden_rate=views.noise_mask.sum() / num_valid,
            prediction_rate=views.prediction_mask.sum() / num_valid,
            no_valid_tokens=(~valid.any(dim=1)).float().mean(),
            token_scores=pairs.token_scores,
            **embeds,
        )


GADMSModel.register_for_auto_class("AutoModel")
GADMSForPreTraining.register_for_auto_class("AutoModelForPreTraining")
