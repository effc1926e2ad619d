"""The tokenizers of towers other than CLIP's, set up as the towers were trained, and checked against them."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from .starting_towers_gadms import config_of_source, quiet_loading

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
MASK_TOKEN = "<mask>"
FEWEST_PIECES = 10


def tower_tokenizer(path: str, **hub_kwargs: Any) -> Any:
    """The tokenizer saved with a model of two towers: right padding, the tower's context length, and a mask token.

    Args:
        path (`str`): Hub id or folder of the model.
        hub_kwargs: those of [`HUB_OPTIONS`].

    Raises:
        OSError: the model or its tokenizer cannot be read.
        ValueError: there is no tokenizer, or it is that of another tower, or one that does not say where in a caption
            its tokens lie.
    """
    with quiet_loading():
        config = config_of_source(path, **hub_kwargs)
    text_config = config.text_config
    # as an option of loading it is saved with the tokenizer, which otherwise pads where its family does when reloaded
    missing = f"{path}: holds no tokenizer; save the tower's own there, with its tokenizer.json"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, config=config, padding_side="right", **hub_kwargs)
    except ValueError as error:
        if "to build an AutoTokenizer" not in str(error):  # which goes on with every class that there is
            raise
        raise ValueError(missing) from None
    if len(tokenizer) < FEWEST_PIECES:  # some families make one up, to which every word is unknown
        raise ValueError(missing)
    if not tokenizer.is_fast:
        raise ValueError(
            f"{path}: its tokenizer, {type(tokenizer).__name__}, does not say where in a caption its tokens lie, "
            "as hiding words needs; save one with a tokenizer.json there"
        )
    refuse_foreign_tokenizer(path, tokenizer, config)
    tokenizer.model_max_length = text_config.max_position_embeddings
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    return tokenizer


def refuse_foreign_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Stop at a tokenizer that is not that of the text tower.

    Raises:
        ValueError: it has more ids than the tower has embeddings, does not frame captions as the tower was trained, or
            has no padding.
    """
    kind, vocab_size, ids = config.model_type, config.text_config.vocab_size, tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    ends = tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id
    expected = {"metaclip_2": (True, True), "tipsv2": (False, False)}.get(kind, (False, True))
    words = {True: "with", False: "without"}
    if len(tokenizer) > vocab_size:
        reason = f"has {len(tokenizer)} ids, but the text tower only {vocab_size} embeddings"
    elif (begins, ends) != expected:
        found, wanted = (f"{words[bos]} BOS and {words[eos]} EOS" for bos, eos in ((begins, ends), expected))
        reason = f"writes captions {found}, but {kind} reads them {wanted}"
    elif tokenizer.pad_token_id is None:
        reason = "has no padding token"
    else:
        return
    raise ValueError(
        f"{name}: its tokenizer, {type(tokenizer).__name__}, {reason}: it does not belong to the text tower; save the "
        "tower's own tokenizer there"
    )
