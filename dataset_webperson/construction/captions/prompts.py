"""The captioners' instructions. Change a word here and raise `PROMPT_VERSION`: older answers are not used."""

import base64
from typing import Any

PROMPT_VERSION = "1"

CAPTION_SYSTEM = (
    "You describe one person in a photograph for a search by clothing. You write plain English, one caption, nothing "
    "else."
)
CAPTION_PROMPT = """\
Describe the person in the middle of this picture.

Say what can be seen of: gender, hair, headwear, glasses, clothes on the upper and the lower body, shoes, bags and \
other things that are carried, and what the person is doing. Give each garment and thing its own colour. Be exact \
("navy hooded sweatshirt"); a vague colour or a general word ("dark top") is right only where the picture is unclear.

Leave out what you cannot see, without saying so. Do not mention the place, the background, the light or the picture \
itself, moods or impressions, other people and how the person stands to them. Do not guess: no "appears", no \
"possibly".

Follow the structure of this sentence. Put what you see in the place of the square brackets, drop a part whose \
bracket you cannot fill, and leave no bracket in your caption:
{template}

Use fewer than {max_words} words. Answer with the caption only.\
"""
_ASK_AGAIN = "This caption cannot be used: {faults}. Write it again by the same instructions, the caption only."
_FAULTS = {
    "empty": "it is empty",
    "too-short": "it is too short",
    "too-long": "it is too long",
    "cut-off": "it is so long that it was cut off",
    "language": "it is not in English",
    "placeholder": "a square bracket of the sentence is left in it",
    "refusal": "it speaks of you or of what cannot be seen",
    "speculation": "it guesses instead of describing what is seen",
    "mood": "it speaks of mood or impression",
    "background": "it mentions the place, the light or the background",
    "other-people": "it mentions other people",
    "garbage": "it is not one plain English sentence or two",
}


def caption_messages(image: bytes, template: str, max_words: int) -> list[dict[str, Any]]:
    """The conversation that asks for a caption.

    Args:
        image: JPEG file; it travels in the message, the server fetches nothing.
        template: sentence with placeholders.
        max_words: word limit stated to the captioner.
    """
    url = "data:image/jpeg;base64," + base64.b64encode(image).decode("ascii")
    prompt = CAPTION_PROMPT.format(template=template, max_words=max_words)
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    return [{"role": "system", "content": CAPTION_SYSTEM}, {"role": "user", "content": content}]


def ask_again(messages: list[dict[str, Any]], answer: str, problems: list[str]) -> list[dict[str, Any]]:
    """The conversation that follows a caption with these problems (of `caption_rules.PROBLEMS`)."""
    faults = "; ".join(_FAULTS[problem] for problem in problems)
    reply = [{"role": "assistant", "content": answer}, {"role": "user", "content": _ASK_AGAIN.format(faults=faults)}]
    return messages + reply
