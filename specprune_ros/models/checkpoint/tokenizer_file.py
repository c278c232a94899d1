"""A ``tokenizer.json`` is a program: its rules are bounded before the library runs them.

A few nested replacements make gigabytes of a short text, a padding rule a million tokens, and a
broken table aborts the process from within the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specprune_ros.bounded_files import boundary
from specprune_ros.bounded_files import read_json as read_tree
from specprune_ros.models.checkpoint.files import AGAIN, CheckpointError, refuse_pointer

MOST_BYTES = 64 << 20  # PaliGemma's has 17 MB
MOST_PIECES = 1 << 21
MOST_RULES = 32
MOST_REPLACEMENTS = 4
LONGEST_PATTERN = 1000  # characters of a regular expression
LONGEST_CONTENT = 8  # characters a rule puts in the place of others
RULES = frozenset(
    [
        'Sequence',
        'BertNormalizer',
        'NFC',
        'NFD',
        'NFKC',
        'NFKD',
        'Lowercase',
        'Nmt',
        'Precompiled',
        'Prepend',
        'Replace',
        'Strip',
        'StripAccents',
        'ByteLevel',
        'BertPreTokenizer',
        'Whitespace',
        'WhitespaceSplit',
        'Punctuation',
        'Split',
        'Metaspace',
        'Digits',
        'UnicodeScripts',
        'CharDelimiterSplit',
        'TemplateProcessing',
        'BertProcessing',
        'RobertaProcessing',
    ]
)


def check_tokenizer(path: Path) -> None:
    """Raise ``CheckpointError`` for a tokenizer whose rules are not those of a language model."""
    with boundary(path, CheckpointError, AGAIN):
        refuse_pointer(path, MOST_BYTES)
        if path.suffix != '.json':
            return
        tree = read_tree(path, MOST_BYTES)
        if not isinstance(tree, dict) or not isinstance(tree.get('model'), dict):
            raise CheckpointError(f'{path}: not a tokenizer; download it again')
        pieces = tree['model'].get('vocab') or ()
        if len(pieces) + len(tree.get('added_tokens') or ()) > MOST_PIECES:
            raise CheckpointError(f'{path}: has more than {MOST_PIECES} pieces')
        for name in ('padding', 'truncation'):
            if tree.get(name) is not None:
                _check_lengths(path, name, tree[name])
        found = [
            rule
            for name in ('normalizer', 'pre_tokenizer', 'post_processor')
            for rule in _rules(tree.get(name))
        ]
        if len(found) > MOST_RULES:
            raise CheckpointError(f'{path}: has {len(found)} rules; at most {MOST_RULES}')
        if sum(rule.get('type') in ('Replace', 'Prepend') for rule in found) > MOST_REPLACEMENTS:
            raise CheckpointError(f'{path}: more than {MOST_REPLACEMENTS} rules lengthen its text')
        for rule in found:
            _check_rule(path, rule)


def _rules(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        for name in ('normalizers', 'pretokenizers', 'processors'):
            for inner in part.get(name) or ():
                yield from _rules(inner)


def _check_lengths(path: Path, name: str, part: dict[str, Any]) -> None:
    strategy = part.get('strategy')
    fixed = strategy.get('Fixed', 0) if isinstance(strategy, dict) else 0
    for value in (fixed, part.get('max_length') or 0, part.get('pad_to_multiple_of') or 0):
        if not 0 <= value <= 1 << 16:
            raise CheckpointError(f'{path}: {name} of {value} tokens; at most {1 << 16}')


def _check_rule(path: Path, rule: dict[str, Any]) -> None:
    kind = rule.get('type')
    if kind not in RULES:
        raise CheckpointError(f'{path}: rule {kind!r:.40} is not one of a known tokenizer')
    pattern = rule.get('pattern')
    texts = pattern.values() if isinstance(pattern, dict) else ()
    if any(len(text) > LONGEST_PATTERN for text in texts):
        raise CheckpointError(f'{path}: a pattern of more than {LONGEST_PATTERN} characters')
    for name in ('content', 'prepend', 'replacement'):
        if isinstance(rule.get(name), str) and len(rule[name]) > LONGEST_CONTENT:
            raise CheckpointError(
                f'{path}: rule {kind} puts {len(rule[name])} characters in; at most '
                f'{LONGEST_CONTENT}'
            )
