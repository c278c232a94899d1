"""Prompts of pi0 and pi0.5, and PaliGemma's tokenizer, which no checkpoint of theirs contains."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, processors

from specprune_ros.models.checkpoint.files import CheckpointError
from specprune_ros.models.checkpoint.tokenizer_file import check_tokenizer
from specprune_ros.models.tokens import Prompt, PromptError, unknown_id

VOCABULARY = 257152
BOS = '<bos>'
STATE_BINS = 256
PLACES = (
    'tokenizer.json of google/paligemma-3b-pt-224 on the Hugging Face Hub (accept its licence), '
    'or paligemma_tokenizer.model of the big_vision bucket on Google Cloud Storage, saved as '
    'tokenizer.model'
)
_SPACED = ' '.join(['235248 235304'] * 8)
# Texts and ids that three independent implementations' tests agree on.
VECTORS = {
    'pick up the bowl\n': '2 18075 908 573 14581 108',
    'Task: put both moka pots on the stove, State: 3 3 3 3 3 3 3 3;\nAction: ': (
        '2 7071 235292 2507 2145 705 1161 37801 611 573 37932 235269 3040 235292 '
        f'{_SPACED} 235289 108 4022 235292 235248'
    ),
}
TEMPLATES = ('pi0', 'pi0_lerobot', 'pi05')


def find_tokenizer(folder: Path) -> Path | None:
    """``tokenizer.json``, else ``tokenizer.model``, in the folder or beside it."""
    for place in (folder, folder.resolve().parent):
        for name in ('tokenizer.json', 'tokenizer.model'):
            if (place / name).is_file():
                return place / name
    return None


def read_tokenizer(path: Path, vocab: int) -> Tokenizer:
    """The tokenizer of a model with ``vocab`` embedding rows, checked against known ids where it
    must be PaliGemma's. Raises ``CheckpointError``.
    """
    check_tokenizer(path)
    if path.suffix == '.model':
        tokenizer = _sentencepiece(path)
    else:
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f'{path}: not a tokenizer ({error}); get {PLACES}') from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    # The published file adds <image> behind the last row of the embedding: no prompt holds it.
    inside = sum(id < vocab for id in tokenizer.get_vocab().values())
    if size > vocab or (vocab == VOCABULARY and inside != VOCABULARY):
        raise CheckpointError(
            f"{path}: has {max(size, inside)} pieces, the model's vocabulary is {vocab}: it is "
            f"not PaliGemma's; get {PLACES}"
        )
    _put_bos_first(tokenizer)
    if vocab == VOCABULARY:
        for text, ids in VECTORS.items():
            got = ' '.join(map(str, tokenizer.encode(text).ids))
            if got != ids:
                raise CheckpointError(
                    f'{path}: {text!r} gives ids {got}, PaliGemma gives {ids}; get {PLACES}'
                )
    return tokenizer


def _put_bos_first(tokenizer: Tokenizer) -> None:
    """As openpi and lerobot do, also where the file leaves it to its user."""
    bos = tokenizer.token_to_id(BOS)
    if bos is not None and tokenizer.encode('').ids != [bos]:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f'{BOS} $A', special_tokens=[(BOS, bos)]
        )


def _sentencepiece(path: Path) -> Tokenizer:
    """A SentencePiece BPE model as a ``tokenizers`` one, with Gemma's conventions: spaces become
    U+2581, unknown characters bytes, BOS is put first.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, decoders, models, normalizers

    try:
        pieces = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f'{path}: not a SentencePiece model; get {PLACES}') from error
    count = pieces.get_piece_size()
    vocabulary = {pieces.id_to_piece(i): i for i in range(count)}
    # A merge's rank is its result's place: pieces are stored in the order they were learnt.
    merges = [
        (result, left, right)
        for piece, result in vocabulary.items()
        for left, right in ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        if left in vocabulary and right in vocabulary
    ]
    scored = sorted(merges, key=lambda m: (-pieces.get_score(m[0]), vocabulary[m[1]], m[0]))
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [(left, right) for _, left, right in scored],
            unk_token=pieces.id_to_piece(pieces.unk_id()),
            fuse_unk=True,
            byte_fallback='<0x00>' in vocabulary,
        )
    )
    special = [pieces.id_to_piece(i) for i in range(count) if pieces.is_control(i)]
    tokenizer.add_special_tokens([AddedToken(p, normalized=False, special=True) for p in special])
    tokenizer.normalizer = normalizers.Replace(' ', '\u2581')
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('\u2581', ' '), decoders.ByteFallback()]
    )
    bos = pieces.id_to_piece(pieces.bos_id())
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{bos} $A', special_tokens=[(bos, pieces.bos_id())]
    )
    return tokenizer


def state_bins(state: np.ndarray) -> np.ndarray:
    """Bins of a normalised state ``[P]``: -1 below -1, 255 from 1 on, nothing clipped."""
    edges = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
    return np.digitize(np.asarray(state, np.float64), edges) - 1


class FlowPrompts:
    """PaliGemma's tokenizer with a prompt of pi0 or pi0.5; the last prompts are kept.

    ``template``: ``pi0`` (openpi's), ``pi0_lerobot``, or ``pi05``, whose text goes on with the
    normalised state of ``state_dim`` values, with zeros up to ``padded`` of them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        max_tokens: int,
        vocab: int,
        state_dim: int = 0,
        padded: int = 0,
    ) -> None:
        if template not in TEMPLATES:
            raise ValueError(f'template must be one of {", ".join(TEMPLATES)}; is {template!r}')
        self.tokenizer, self.template_name = tokenizer, template
        self.max_tokens, self.vocab = max_tokens, vocab
        self.state_dim, self.padded = state_dim, padded
        self.unknown_id = unknown_id(tokenizer)
        self._encoded = lru_cache(maxsize=64)(self._encode)

    def encode(self, instruction: str, state: np.ndarray | None = None) -> Prompt:
        """The prompt for an instruction and, where the model reads it, a normalised state ``[P]``
        (zeros for ``None``). Raises ``PromptError`` when it is too long.
        """
        return self._encoded(*self.text(instruction, state))

    def text(self, instruction: str, state: np.ndarray | None = None) -> tuple[str, int, int]:
        """The text, and the range of its characters that is the instruction."""
        if self.template_name == 'pi0_lerobot':
            tail = '' if instruction.endswith('\n') else '\n'
            return instruction + tail, 0, len(instruction)
        clean = instruction.strip().replace('_', ' ').replace('\n', ' ')
        if self.template_name == 'pi0':
            return f'{clean}\n', 0, len(clean)
        values = np.zeros(self.state_dim) if state is None else np.asarray(state, np.float64)
        if values.shape != (self.state_dim,):
            raise PromptError(f'the state has shape {list(values.shape)}, not [{self.state_dim}]')
        values = np.pad(values, (0, max(0, self.padded - len(values))))
        bins = ' '.join(map(str, state_bins(values)))
        return f'Task: {clean}, State: {bins};\nAction: ', 6, 6 + len(clean)

    def _encode(self, text: str, start: int, stop: int) -> Prompt:
        # A token is at least one byte, and no vocabulary packs this many bytes into each.
        if len(text) > 64 * self.max_tokens:
            raise PromptError(self._too_long(stop - start, 'far more'))
        encoding = self.tokenizer.encode(text)
        ids = tuple(encoding.ids)
        if len(ids) > self.max_tokens:
            raise PromptError(self._too_long(stop - start, str(len(ids))))
        if max(ids) >= self.vocab:
            raise PromptError(
                f'token id {max(ids)} lies outside the model vocabulary of {self.vocab}: the '
                'tokenizer does not belong to this model'
            )
        inside = [
            i
            for i, (first, last) in enumerate(encoding.offsets)
            if first < stop and last > start and not encoding.special_tokens_mask[i]
        ]
        unknown = dict.fromkeys(
            text[slice(*encoding.offsets[i])].strip() for i in inside if ids[i] == self.unknown_id
        )
        return Prompt(
            ids=ids,
            instruction=(inside[0], inside[-1] + 1) if inside else (0, 0),
            unknown=tuple(unknown),
            vision_at=0,
        )

    def _too_long(self, length: int, count: str) -> str:
        return (
            f'instruction of {length} characters makes {count} tokens with the rest of the '
            f'prompt, the model takes {self.max_tokens}; cut off, it would lose its end, and the '
            'state with it: shorten the instruction'
        )
