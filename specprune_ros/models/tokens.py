"""Instructions to token ids, in each family's prompt, with the instruction's own rows marked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

SPACE = '\u2581'  # the lone space piece of the Llama tokenizer, id 29871


class PromptError(ValueError):
    """An instruction that cannot be turned into a prompt."""


@dataclass(frozen=True)
class Prompt:
    """A tokenised instruction.

    ``ids``: the whole prompt. ``vision_at``: how many ids come before the images.
    ``instruction``: half-open range of ``ids`` that are the instruction's words. ``unknown``:
    words of the instruction outside the vocabulary.
    """

    ids: tuple[int, ...]
    instruction: tuple[int, int]
    unknown: tuple[str, ...] = ()
    vision_at: int = 1


@dataclass(frozen=True)
class Template:
    """A prompt format: ``before`` the images, then ``head``, the instruction, ``tail``.

    ``bos``: the tokenizer puts its begin token first. ``lower``: the instruction is lower-cased.
    ``append``: pieces added at the end where they are not already there.
    """

    head: str
    tail: str
    before: str = ''
    bos: bool = True
    lower: bool = True
    append: tuple[str, ...] = ()


_QUESTION = 'What action should the robot take to '
TEMPLATES = {
    'openvla': Template(head=f'In: {_QUESTION}', tail='?\nOut:', append=(SPACE,)),
    'cogact': Template(head=f'In: {_QUESTION}', tail='?\nOut:', append=(SPACE, '</s>')),
    # The bare instruction: small policies trained from scratch, whose FiLM would be diluted.
    'plain': Template(head='', tail='', append=(SPACE,)),
    'dexbotic': Template(
        before='A chat between a curious user and an artificial intelligence assistant. The '
        "assistant gives helpful, detailed, and polite answers to the user's questions. USER: ",
        head=f'\n{_QUESTION}',
        tail='? ASSISTANT:  <|endoftext|>',
        bos=False,
        lower=False,
    ),
}


# What the vocabularies of released checkpoints make of a text: embedding rows (Llama 2 of OpenVLA,
# Qwen 2.5), text, ids.
VECTORS = {
    32064: ('what action', (1, 825, 3158)),
    152064: (' USER: ', (13872, 25, 220)),
}


class PromptTokenizer:
    """A ``tokenizers.Tokenizer`` with a template; the last prompts are kept."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str = 'openvla',
        max_tokens: int = 512,
        vocab: int | None = None,
    ) -> None:
        """``vocab`` is the size of the embedding table; larger ids are refused."""
        if template not in TEMPLATES:
            raise ValueError(f'template must be one of {", ".join(TEMPLATES)}; is {template!r}')
        self.tokenizer, self.template_name = tokenizer, template
        self.template, self.max_tokens, self.vocab = TEMPLATES[template], max_tokens, vocab
        self.unknown_id = unknown_id(tokenizer)
        # Left in the file by whoever saved it after use; transformers undoes them at each call.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if self.template.bos and not (tokenizer.encode('a').special_tokens_mask or [0])[0]:
            raise ValueError(
                f'the tokenizer puts no begin token first, as template {template} needs'
            )
        self._append = []
        for piece in self.template.append:
            number = tokenizer.token_to_id(piece)
            if number is None:
                raise ValueError(f'the tokenizer lacks the piece {piece!r} of template {template}')
            self._append.append(number)
        self.encode = lru_cache(maxsize=64)(self._encode)

    def _encode(self, instruction: str) -> Prompt:
        """The prompt for an instruction; raises ``PromptError`` when it is too long."""
        template = self.template
        # A token is at least one byte, and no vocabulary packs this many bytes into each.
        if len(instruction) > 64 * self.max_tokens:
            raise PromptError(self._too_long(instruction, 'far more'))
        words = instruction.lower() if template.lower else instruction
        before: list[int] = []
        if template.before:
            before = self.tokenizer.encode(template.before, add_special_tokens=False).ids
        text = template.head + words + template.tail
        encoding = self.tokenizer.encode(text, add_special_tokens=template.bos)
        ids = list(encoding.ids)
        start, stop = len(template.head), len(template.head) + len(words)
        inside = [
            i
            for i, (first, last) in enumerate(encoding.offsets)
            if first < stop and last > start and not encoding.special_tokens_mask[i]
        ]
        for number in self._append:
            if not ids or ids[-1] != number:
                ids.append(number)
        ids = before + ids
        if len(ids) > self.max_tokens:
            raise PromptError(self._too_long(instruction, str(len(ids))))
        if self.vocab is not None and max(ids) >= self.vocab:
            raise PromptError(
                f'token id {max(ids)} lies outside the model vocabulary of {self.vocab}: the '
                'tokenizer does not belong to this model'
            )
        unknown = tuple(
            dict.fromkeys(
                text[slice(*encoding.offsets[i])].strip()
                for i in inside
                if encoding.ids[i] == self.unknown_id
            )
        )
        shift = len(before)
        span = (inside[0] + shift, inside[-1] + 1 + shift) if inside and words.strip() else (0, 0)
        return Prompt(
            ids=tuple(ids),
            instruction=span,
            unknown=unknown,
            vision_at=len(before) if template.before else 1,
        )

    def _too_long(self, instruction: str, count: str) -> str:
        return (
            f'instruction of {len(instruction)} characters makes {count} tokens, the model takes '
            f'{self.max_tokens}: shorten it'
        )


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id that stands for what the vocabulary lacks, ``None`` without one."""
    name = getattr(tokenizer.model, 'unk_token', None)
    return None if name is None else tokenizer.token_to_id(name)


def word_tokenizer(vocabulary: Iterable[str]) -> Tokenizer:
    """A WordLevel tokenizer over the template's words and ``vocabulary``, lower-case.

    Ids: 0 ``<unk>``, 1 ``<s>``, 2 ``</s>``, 3 the lone space piece, then words in order of
    appearance. Saved and loaded as ``tokenizer.json``. A word outside becomes ``<unk>``.
    """
    template = TEMPLATES['openvla']
    split = pre_tokenizers.Whitespace()
    words = [
        piece.lower()
        for text in (template.head, template.tail, *vocabulary)
        for piece, _ in split.pre_tokenize_str(text)
    ]
    ordered = dict.fromkeys(['<unk>', '<s>', '</s>', SPACE, *words])
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(ordered)}, unk_token='<unk>')
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', 1)]
    )
    return tokenizer


@lru_cache(maxsize=64)
def id_rows(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Ids as int64 ``[1, P]`` on a device, kept: the copy from the host would synchronise."""
    with torch.inference_mode(False):  # kept tensors must serve training as well
        return torch.tensor(ids, dtype=torch.int64, device=device)[None]
