"""Two parts of a query: in two streams while a graph is captured, else one after the other."""

from contextlib import contextmanager

import pytest
import torch

from specprune_ros.models.accel import streams


class Stream:
    device = torch.device('cuda', 0)

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def wait_stream(self, other):
        self.calls.append(f'{self.name} waits for {other.name}')


@pytest.fixture
def calls(monkeypatch):
    """What a capture in the stream ``main`` would call, without a device."""
    made, now = [], []

    @contextmanager
    def entered(stream):
        now.append(stream)
        try:
            yield
        finally:
            now.pop()

    main = Stream('main', made)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: now[-1] if now else main)
    monkeypatch.setattr(torch.cuda, 'stream', entered)

    def part(name):
        made.append(f'{name} in {torch.cuda.current_stream(0).name}')
        return name

    return made, part


def test_outside_of_a_capture_the_parts_follow_each_other(calls):
    made, part = calls
    assert streams.both(lambda: part('one'), lambda: part('two')) == ('one', 'two')
    assert made == ['one in main', 'two in main']


def test_in_a_capture_the_second_is_a_branch_that_is_joined(calls):
    made, part = calls
    with streams.side_stream(Stream('side', made)):
        assert streams.both(lambda: part('one'), lambda: part('two')) == ('one', 'two')
    assert made == ['side waits for main', 'two in side', 'one in main', 'main waits for side']
    made.clear()
    streams.both(lambda: part('one'), lambda: part('two'))
    assert made == ['one in main', 'two in main']


@pytest.mark.parametrize('failing', ['one', 'two'])
def test_a_branch_is_joined_where_a_part_fails(calls, failing):
    made, part = calls

    def run(name):
        part(name)
        if name == failing:
            raise torch.OutOfMemoryError('no memory')

    with (
        pytest.raises(torch.OutOfMemoryError),
        streams.side_stream(Stream('side', made)),
    ):
        streams.both(lambda: run('one'), lambda: run('two'))
    assert made[-1] == 'main waits for side'


def test_a_role_has_one_stream(monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'Stream', lambda place, priority: made.append(place) or place)
    streams._stream.cache_clear()
    try:
        for name in ('cuda:1', 'cuda', 'cuda:1'):
            streams.stream_for('warming', torch.device(name))
        streams.stream_for('beside', torch.device('cuda'))
    finally:
        streams._stream.cache_clear()
    assert made == [torch.device('cuda', 1)] * 2
