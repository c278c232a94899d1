"""Prompts: the published check vectors where the tokenizer is at hand, and our word tokenizer."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from specprune_ros.models.presets import default_tokenizer
from specprune_ros.models.tokens import PromptError, PromptTokenizer, word_tokenizer

OFT = Path(__file__).parents[3] / 'shared' / 'data' / 'openvla_oft_libero_10'
real = pytest.mark.skipif(
    not (OFT / 'tokenizer.json').is_file(), reason='the OFT tokenizer.json is not beside this tree'
)
HEAD = [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304]
BOWL = 'pick up the black bowl between the plate and the ramekin and place it on the plate'


@pytest.fixture(scope='module')
def llama():
    return Tokenizer.from_file(str(OFT / 'tokenizer.json'))


@real
def test_check_vectors_of_the_released_tokenizer(llama):
    prompt = PromptTokenizer(llama).encode('turn on the stove')
    stove = [*HEAD, 2507, 373, 278, 380, 994, 29973, 13, 3744, 29901, 29871]
    assert list(prompt.ids) == stove
    assert prompt.instruction == (10, 15)
    prompt = PromptTokenizer(llama).encode(BOWL)
    assert len(prompt.ids) == 35
    assert list(prompt.ids[:10]) == HEAD
    assert list(prompt.ids[-5:]) == [29973, 13, 3744, 29901, 29871]
    assert prompt.instruction == (10, 30)
    assert prompt.unknown == ()


@real
def test_the_instruction_is_lower_cased_for_openvla(llama):
    tokenizer = PromptTokenizer(llama)
    assert tokenizer.encode('Turn ON the Stove') == tokenizer.encode('turn on the stove')


@real
def test_cogact_ends_with_the_space_piece_and_stop(llama):
    prompt = PromptTokenizer(llama, 'cogact').encode('turn on the stove')
    assert list(prompt.ids[-3:]) == [29901, 29871, 2]
    assert prompt.vision_at == 1


@real
def test_dexbotic_splits_around_the_images(llama):
    prompt = PromptTokenizer(llama, 'dexbotic').encode('Close the Drawer')
    text = llama.decode(list(prompt.ids), skip_special_tokens=False)
    assert text.startswith('A chat between a curious user')
    before = llama.decode(list(prompt.ids[: prompt.vision_at]))
    assert before.endswith('USER: ')
    words = llama.decode(list(prompt.ids[slice(*prompt.instruction)]))
    assert words == 'Close the Drawer'  # not lower-cased
    after = llama.decode(list(prompt.ids[prompt.vision_at :]), skip_special_tokens=False)
    assert after.lstrip(' ') == (
        '\nWhat action should the robot take to Close the Drawer? ASSISTANT:  <|endoftext|>'
    )
    assert 1 not in prompt.ids  # no BOS


def test_words_get_stable_ids_and_strangers_are_named():
    tokenizer = PromptTokenizer(word_tokenizer(['red blue', 'cube']))
    prompt = tokenizer.encode('grasp the RED cube, grasp hard')
    names = [tokenizer.tokenizer.id_to_token(i) for i in prompt.ids]
    assert names[0] == '<s>' and names[-1] == '\u2581'
    assert names[1:11] == ['in', ':', 'what', 'action', 'should', 'the', 'robot', 'take', 'to'] + [
        '<unk>'
    ]
    assert names[slice(*prompt.instruction)] == [
        '<unk>',
        'the',
        'red',
        'cube',
        '<unk>',
        '<unk>',
        '<unk>',
    ]
    assert prompt.unknown == ('grasp', ',', 'hard')
    assert [tokenizer.tokenizer.token_to_id(t) for t in ('<unk>', '<s>', '</s>', '\u2581')] == [
        0,
        1,
        2,
        3,
    ]


def test_the_word_tokenizer_survives_its_file(tmp_path):
    first = default_tokenizer()
    first.save(str(tmp_path / 'tokenizer.json'))
    again = Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    text = 'Pick up the green mug; then zzz'
    assert PromptTokenizer(again).encode(text) == PromptTokenizer(first).encode(text)


def test_an_empty_instruction_has_no_instruction_rows():
    for text in ('', '   '):
        prompt = PromptTokenizer(default_tokenizer()).encode(text)
        assert prompt.instruction == (0, 0)
        assert prompt.unknown == ()


def test_a_long_instruction_is_refused_with_its_length():
    tokenizer = PromptTokenizer(default_tokenizer(), max_tokens=64)
    with pytest.raises(PromptError, match='instruction of 10000 characters makes .* takes 64'):
        tokenizer.encode('a ' * 5000)
    with pytest.raises(PromptError, match='far more tokens'):
        tokenizer.encode('a' * 100000)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(PromptError, match='outside the model vocabulary of 5'):
        PromptTokenizer(default_tokenizer(), vocab=5).encode('red')
    with pytest.raises(ValueError, match='template must be one of'):
        PromptTokenizer(default_tokenizer(), 'chatty')


def test_prompts_are_kept():
    tokenizer = PromptTokenizer(default_tokenizer())
    assert tokenizer.encode('red') is tokenizer.encode('red')
