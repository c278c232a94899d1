"""The wire format reads what openpi's clients write, and nothing that could do harm."""

import pickle
import tracemalloc

import hypothesis.extra.numpy as arrays
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprune_ros.serving.protocol import (
    BUSY,
    FAILED,
    MAX_ELEMENTS,
    MAX_LENGTH,
    ProtocolError,
    error_text,
    pack,
    read_error,
    unpack,
)

NUMBERS = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness='='),
    arrays.unsigned_integer_dtypes(endianness='='),
    arrays.floating_dtypes(endianness='=', sizes=(16, 32, 64)),
)


@given(arrays.arrays(NUMBERS, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0)))
def test_an_array_comes_back_as_it_was(array):
    back = unpack(pack({'x': array}))['x']
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable  # PyTorch warns about others


@given(arrays.from_dtype(np.dtype(np.float32)), st.integers(-(2**63), 2**64 - 1), st.text())
def test_scalars_text_and_maps_come_back(scalar, number, text):
    back = unpack(pack({'a': [scalar, number, text, None, True], 'b': {'c': b'bytes'}}))
    assert type(back['a'][0]) is np.float32
    assert back['a'][0].tobytes() == scalar.tobytes()
    assert back['a'][1:] == [number, text, None, True]
    assert back['b'] == {'c': b'bytes'}


def test_the_bytes_are_those_of_openpi_client():
    # openpi_client.msgpack_numpy.packb(np.arange(3, dtype=np.float32)), version 0.1.2
    written = (
        b'\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x0c\x00\x00\x00\x00\x00\x00\x80?\x00\x00\x00@'
        b'\xc4\x05dtype\xa3<f4\xc4\x05shape\x91\x03'
    )
    assert pack(np.arange(3, dtype=np.float32)) == written
    assert unpack(written).tolist() == [0.0, 1.0, 2.0]


def test_another_byte_order_is_read():
    array = np.arange(5, dtype='>f8')
    back = unpack(pack(array))
    assert back.tolist() == array.tolist()
    assert back.dtype.isnative


ARRAY = msgpack.packb({b'__ndarray__': True, b'data': bytes(12), b'dtype': '<f4', b'shape': (3,)})


@pytest.mark.parametrize('data', [b'', ARRAY[:-3], ARRAY[:1], ARRAY + b'\x00'])
def test_a_message_that_is_cut_off_or_too_long_is_refused(data):
    with pytest.raises(ProtocolError, match='no msgpack message'):
        unpack(data)


@pytest.mark.parametrize(
    ('dtype', 'shape', 'data'),
    [
        ('|O', (1,), bytes(8)),
        ('|V4', (3,), bytes(12)),
        ('<U3', (1,), bytes(12)),
        ('<c8', (1,), bytes(8)),
        ('<f4', (4,), bytes(12)),
        ('<f4', (-3,), bytes(12)),
        ('<f4', (2**62, 4), b''),
        ('<f4', (3.0,), bytes(12)),
        ('<f4', 'abc', bytes(12)),
        ('<f4', (3,), None),
        ('<f4', (1,) * 9 + (3,), bytes(12)),
        ('nonsense', (3,), bytes(12)),
        (['<f4', 'x'], (3,), bytes(12)),
        (None, (3,), bytes(12)),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(dtype, shape, data):
    message = {b'__ndarray__': True, b'data': data, b'dtype': dtype, b'shape': shape}
    with pytest.raises(ProtocolError):
        unpack(msgpack.packb(message))


def test_pickles_are_neither_written_nor_read():
    with pytest.raises(TypeError):
        pack({'x': np.array([object()])})
    with pytest.raises(TypeError):
        pack({'x': object()})
    with pytest.raises(ProtocolError):
        unpack(pickle.dumps({'x': 1}))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    try:
        unpack(data)
    except ProtocolError as error:
        assert str(error)


def test_depth_is_bounded():
    with pytest.raises(ProtocolError):
        unpack(b'\x91' * 100_000 + b'\x00')


NESTED = b'\xdc' + MAX_LENGTH.to_bytes(2, 'big') + b'\xa2ab' * (MAX_LENGTH - 1)


@pytest.mark.parametrize(
    'data',
    [
        b'\xdd' + (1 << 20).to_bytes(4, 'big') + b'\x80' * (1 << 20),  # a list of empty maps
        NESTED * 500 + b'\xc0',  # 500 lists, each the last element of the one around it
        msgpack.packb([[{}] * (MAX_LENGTH // 2)] * 50),
        msgpack.packb({'x': {number: None for number in range(MAX_LENGTH + 1)}}),
    ],
)
def test_a_message_does_not_become_many_times_its_size(data):
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match='max_(array|map)_len|more than 10000 elements'):
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_what_has_few_elements_is_read():
    rows = [[0.5] * (MAX_LENGTH - 1)] * (MAX_ELEMENTS // MAX_LENGTH - 1)
    assert unpack(pack({'x': rows, 'y': np.zeros(10**6, np.uint8)}))['x'] == rows


def test_an_error_says_its_kind():
    assert read_error(error_text(BUSY, 'ask again: later')) == (BUSY, 'ask again: later')
    # openpi's own server sends a traceback
    assert read_error('Traceback (most recent call last): boom')[0] == FAILED
