"""GA-DMS: CLIP towers for non-square pedestrian images, and the decoder that pre-training adds to them."""

from .requirements_gadms import MINIMUM_TRANSFORMERS  # noqa: F401 - first, or the next imports fail without a cure

# isort: split
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPPreTrainedModel, CLIPTextConfig, CLIPTextModel, CLIPVisionModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoder,
    CLIPOutput,
    CLIPVisionEmbeddings,
    eager_attention_forward,
    image_text_contrastive_loss,
)
from transformers.utils import ModelOutput, can_return_tuple

from .chunk_gadms import BatchChunk
from .configuration_gadms import GADMSConfig, GADMSVisionConfig
from .distributed_gadms import gather_batch, mean_over_processes, num_processes
from .losses_gadms import mtp_loss, sdm_loss
from .masking_gadms import DualMasking, MaskedCaptions, Masking, draw_uniforms, mask_captions
from .released_scores_gadms import released_scores
from .token_scores_gadms import eos_positions, gradient_attention_scores, refuse_left_padding, valid_tokens


class GADMSVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch embeddings with a position table for a grid of `height / patch` x `width / patch`."""

    image_size: tuple[int, int]
    patch_size: int

    def __init__(self, config: GADMSVisionConfig) -> None:
        # skips the parent's, which squares a single side
        nn.Module.__init__(self)
        self.config = config
        self.embed_dim = config.hidden_size
        height, width = config.image_size
        self.image_size = (height, width)
        self.patch_size = config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(self.embed_dim))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, self.embed_dim, kernel_size=self.patch_size, stride=self.patch_size, bias=False
        )
        rows, columns = config.grid
        self.num_positions = rows * columns + 1
        self.position_embedding = nn.Embedding(self.num_positions, self.embed_dim)
        self.position_ids = nn.Buffer(torch.arange(self.num_positions).expand((1, -1)), persistent=False)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """`(B, 3, height, width)` pixels -> `(B, 1 + patches, hidden_size)`.

        Raises:
            ValueError: the images are of another size than the model's, and `interpolate_pos_encoding`, which resizes
                the position table to their grid, is not set; or their sides are not whole patches.
        """
        table = self.position_embedding(self.position_ids)
        height, width = pixel_values.shape[-2:]
        if (height, width) != self.image_size:
            if not interpolate_pos_encoding:
                raise ValueError(
                    f"pixel_values are {height}x{width} (height x width) but the model takes {self.image_size[0]}x"
                    f"{self.image_size[1]}: prepare them with the model's own processor, pass "
                    "interpolate_pos_encoding=True, or load the model with "
                    f"from_clip_pretrained(..., image_size=({height}, {width}))"
                )
            rows, columns = height // self.patch_size, width // self.patch_size
            if rows * columns == 0 or height % self.patch_size or width % self.patch_size:
                raise ValueError(
                    f"pixel_values are {height}x{width} (height x width): each side must be a multiple of the patch, "
                    f"{self.patch_size}"
                )
            table = resize_position_table(table[0], (rows, columns), self.config.grid)[None]
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        # the length of a tensor would fix the batch of an exported graph
        tokens = torch.cat([self.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        return tokens + table


class WholeInitialization:
    """Initialises modules that own no parameter directly, such as an attention through its projections.

    transformers skips these in classes from outside, to guard against code that does not use its `initialization`.
    Without this mixin the weights of CLIP's attention and MLP, and those set below, would keep a generic distribution.
    """

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        super()._initialize_weights(module, is_custom_code=False)  # type: ignore[misc]  # of PreTrainedModel, mixed in


class GADMSVisionModel(WholeInitialization, CLIPVisionModel):
    """[`CLIPVisionModel`] over non-square images."""

    config: GADMSVisionConfig

    def __init__(self, config: GADMSVisionConfig) -> None:
        CLIPPreTrainedModel.__init__(self, config)
        self.embeddings = GADMSVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # CLIP's own spelling
        self.encoder = CLIPEncoder(config)  # type: ignore[arg-type]  # annotated for the whole CLIP's configuration
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()


def resize_position_table(
    table: torch.Tensor, grid: tuple[int, int], from_grid: tuple[int, int] | None = None
) -> torch.Tensor:
    """Resize a `(1 + patches, D)` position table bilinearly to `(1 + rows * columns, D)`; class row kept.

    Args:
        table (`torch.Tensor`): a row for the class token, then one for each patch, row by row of the grid.
        grid (`tuple[int, int]`): rows and columns that it shall have.
        from_grid (`tuple[int, int]`, *optional*): rows and columns that it has; by default a square.

    Raises:
        ValueError: the table is not of that grid.
    """
    if from_grid is None:
        side = round((table.shape[0] - 1) ** 0.5)
        if side * side != table.shape[0] - 1:
            raise ValueError(
                f"a position table of {table.shape[0]} rows is not one class row and a square grid of patches"
            )
        from_grid = side, side
    if grid == from_grid:
        return table
    class_row, patch_rows = table[:1], table[1:]
    patches = patch_rows.T.reshape(1, -1, *from_grid).float()  # (1, D, rows, columns)
    patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
    patch_rows = patches.flatten(2)[0].T.to(table.dtype)
    return torch.cat([class_row, patch_rows])


class GADMSPreTrainedModel(WholeInitialization, CLIPPreTrainedModel):
    """Base of the models below: configuration, weight initialisation, and starting from a CLIP."""

    config: GADMSConfig
    base_model_prefix = "gadms"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GADMSModel):
            for projection in (module.text_projection, module.visual_projection):
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
                "model is loaded with from_pretrained"
            )
        loaded = CLIPModel.from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        clip, report = cast(tuple[CLIPModel, dict[str, Any]], loaded)  # a pair, where the loading info is asked for
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"{pretrained_model_name_or_path} is not a whole CLIP model: {len(missing)} weights are missing "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})"
            )

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
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model = GADMSVisionModel._from_config(config.vision_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Embed descriptions. With `return_dict=False` a tuple, as everywhere in transformers.

        Args:
            input_ids (`torch.Tensor` of shape `(B, T)`): token ids, padded on the right.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): accepted from processors but not needed:
                the tower is causal, and the embedding is read at EOS, before any padding. It is only checked.

        Returns:
            [`BaseModelOutputWithPooling`]: `pooler_output` `(B, projection_dim)` is the embedding, not normalised;
            `last_hidden_state` `(B, T, hidden_size)` holds the tower's tokens.

        Raises:
            ValueError: captions are padded on the left, or the mask hides some of their tokens.
        """
        refuse_left_padding(input_ids, attention_mask)
        outputs = self.text_model(input_ids, return_dict=True, **kwargs)
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
        refuse_left_padding(input_ids, attention_mask)
        if len(pixel_values) != len(input_ids):
            raise ValueError(f"{len(pixel_values)} images for {len(input_ids)} captions; give one image per caption")
        if word_ids is None:
            word_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
        elif word_ids.shape != input_ids.shape:
            raise ValueError(f"word_ids are {tuple(word_ids.shape)} but input_ids {tuple(input_ids.shape)}")
        image_embeds = pooled(self.get_image_features(pixel_values, return_dict=True)).float()

        # a row for the first token of each word, which hides all tokens of the word
        valid = valid_tokens(input_ids)
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
        captions = torch.cat([input_ids, masked])[:, : int(eos_positions(input_ids).max()) + 1]
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
            num_layers (`int`, *optional*): last text layers used; two thirds of them by default (8 of 12).
            recipe (`str`): `"paper"`, or `"released"` for the released code's, which depends on the batch.

        Returns:
            `torch.Tensor` of shape `(B, T)`, float32, in [0, 1]; 0 at BOS, EOS and padding. See
            `token_scores_gadms.gradient_attention_scores` and `released_scores_gadms.released_scores`.

        Raises:
            ValueError: the recipe is unknown, the text tower has no `num_layers` layers, images and captions differ
                in number, or captions are padded on the left.
        """
        refuse_left_padding(input_ids, attention_mask)
        if recipe not in ("paper", "released"):
            raise ValueError(f'recipe must be "paper" or "released"; got {recipe!r}')
        score = gradient_attention_scores if recipe == "paper" else released_scores
        with torch.no_grad():
            image_embeds = pooled(self.get_image_features(pixel_values, return_dict=True))
        return score(self.text_model, self.text_projection, image_embeds, input_ids, num_layers)

    def project_image_tokens(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """All tokens of the image tower in the joint space, CLS first: `(B, 1 + patches, projection_dim)`."""
        return self.visual_projection(self.vision_model.post_layernorm(last_hidden_state))


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
            positions (`torch.Tensor` of shape `(B, T)`): bool, tokens to predict.

        Returns:
            `torch.Tensor` of shape `(positions.sum(), vocab_size)`, in row-major order of `positions`.
        """
        # no residual around the cross-attention: predictions must come from the image
        hidden_states = self.cross_attention(self.text_norm(text_tokens), self.image_norm(image_tokens))
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        hidden_states = self.encoder(inputs_embeds=hidden_states, attention_mask=mask).last_hidden_state
        hidden_states = self.final_norm(hidden_states[positions])
        return self.vocabulary(self.head_norm(self.activation(self.dense(hidden_states))))


@dataclass
class GADMSForPreTrainingOutput(ModelOutput):
    """
    loss (`torch.Tensor`): scalar, SDM + weight * MTP over the joint batch of all processes.
    sdm_loss (`torch.Tensor`): scalar, similarity distribution matching.
    mtp_loss (`torch.Tensor`): scalar, masked token prediction.
    hidden_rate (`torch.Tensor`): share of valid tokens hidden before alignment, in this process.
    prediction_rate (`torch.Tensor`): share of valid tokens to predict, in this process.
    no_valid_tokens (`torch.Tensor`): share of captions without any token between BOS and EOS, in this process.
    token_scores (`torch.Tensor` of shape `(B, T)`): scores that the masks were drawn from, if any.
    image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): image embeddings, not normalised.
    text_embeds (`torch.Tensor` of shape `(B, projection_dim)`): embeddings of the captions as aligned by SDM.
    """

    loss: torch.Tensor | None = None
    sdm_loss: torch.Tensor | None = None
    mtp_loss: torch.Tensor | None = None
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
        text_tokens (`torch.Tensor` of shape `(B, T, projection_dim)`): projected tokens of the prediction view; where
            the decoder attends padding, `T` is the context length, also in the views.
        views ([`MaskedCaptions`]): both views. Without masks `text_tokens`, `views` and `token_scores` are `None`.
        token_scores (`torch.Tensor` of shape `(B, T)`): scores that the masks were drawn from, if any.
    """

    image_tokens: torch.Tensor
    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
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
        self.post_init()

    def encode_pairs(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        mask_uniforms: torch.Tensor | None = None,
        masking: Masking | None = DualMasking(),  # noqa: B008 - frozen
    ) -> EncodedPairs:
        """Score the tokens, draw both masks, and run the towers: once over the images, once over both views.

        The arguments are those of `forward`.
        """
        gadms = self.gadms
        image_tokens = gadms.project_image_tokens(gadms.vision_model(pixel_values).last_hidden_state)
        image_embeds = image_tokens[:, 0]
        if masking is None:
            return EncodedPairs(
                image_tokens, image_embeds, pooled(gadms.get_text_features(input_ids, return_dict=True))
            )

        scores = None
        if masking.uses_scores:
            scores = self.score_captions(image_embeds, input_ids)
        if mask_uniforms is None:
            seed = int(torch.randint(2**62, ()).item())
            generator = torch.Generator(input_ids.device).manual_seed(seed)
            mask_uniforms = draw_uniforms(input_ids.shape[0], input_ids.shape[1], generator)
        views = mask_captions(input_ids, scores, mask_uniforms, masking, self.config.mask_token_id)
        if self.config.decoder_attends_padding:
            views = views.padded(self.config.text_config.max_position_embeddings)

        if masking.in_place:  # both views are the same
            hidden_states = gadms.text_model(views.prediction_input_ids).last_hidden_state
            text_tokens = noise_tokens = gadms.text_projection(hidden_states)
        else:
            both = torch.cat([views.noise_input_ids, views.prediction_input_ids])
            hidden_states = gadms.text_model(both).last_hidden_state
            noise_tokens, text_tokens = gadms.text_projection(hidden_states).chunk(2)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        text_embeds = noise_tokens[rows, eos_positions(input_ids)]
        return EncodedPairs(image_tokens, image_embeds, text_embeds, text_tokens, views, scores)

    def score_captions(self, image_embeds: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Token scores that the masks are drawn from, by the paper's recipe. Override this to train with another.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): image embeddings, not normalised.
            input_ids (`torch.Tensor` of shape `(B, T)`): their captions.

        Returns:
            `torch.Tensor` of shape `(B, T)`, float32, in [0, 1] and without gradient; 0 at BOS, EOS and padding.
        """
        gadms = self.gadms
        return gradient_attention_scores(gadms.text_model, gadms.text_projection, image_embeds, input_ids)

    def joint_sdm_loss(
        self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, person_ids: torch.Tensor
    ) -> torch.Tensor:
        """SDM over the pairs of all processes; see `losses_gadms.sdm_loss`."""
        return sdm_loss(
            gather_batch(image_embeds), gather_batch(text_embeds), gather_batch(person_ids), self.config.temperature
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

        Raises:
            ValueError: captions are padded on the left, or the images are not of the model's size.
        """
        refuse_left_padding(input_ids, attention_mask)
        if person_ids is None:
            rows = torch.arange(len(input_ids), device=input_ids.device)
            rank = torch.distributed.get_rank() if num_processes() > 1 else 0
            person_ids = rows + len(rows) * rank
        pairs = self.encode_pairs(pixel_values, input_ids, mask_uniforms, masking)
        embeds = {"image_embeds": pairs.image_embeds, "text_embeds": pairs.text_embeds}
        if chunk is None:
            sdm = self.joint_sdm_loss(**embeds, person_ids=person_ids)
        else:
            sdm = chunk.sdm_loss(**embeds)
        views = pairs.views
        if views is None:
            return GADMSForPreTrainingOutput(loss=sdm, sdm_loss=sdm.detach(), **embeds)

        # padding is hidden from the decoder, unless it was trained to see it; BOS and EOS are not
        width = views.prediction_mask.shape[1]
        positions = torch.arange(width, device=input_ids.device)
        own_tokens = positions <= eos_positions(input_ids)[:, None]
        seen = torch.ones_like(own_tokens) if self.config.decoder_attends_padding else own_tokens
        logits = self.decoder(pairs.text_tokens, pairs.image_tokens, seen, views.prediction_mask)
        num_masked = mean_over_processes(views.prediction_mask.sum()) if chunk is None else chunk.num_masked
        labels = F.pad(input_ids, (0, width - input_ids.shape[1]))[views.prediction_mask]
        mtp = mtp_loss(logits, labels, num_masked)

        valid = valid_tokens(input_ids)
        num_valid = valid.sum().clamp_min(1)
        return GADMSForPreTrainingOutput(
            loss=sdm + mtp_weight * mtp,
            sdm_loss=sdm.detach(),
            mtp_loss=mtp.detach(),
            hidden_rate=views.noise_mask.sum() / num_valid,
            prediction_rate=views.prediction_mask.sum() / num_valid,
            no_valid_tokens=(~valid.any(dim=1)).float().mean(),
            token_scores=pairs.token_scores,
            **embeds,
        )


GADMSModel.register_for_auto_class("AutoModel")
GADMSForPreTraining.register_for_auto_class("AutoModelForPreTraining")
