"""A client of the page that is no browser: it speaks viser's protocol and may send anything."""

from __future__ import annotations

import msgspec
import viser
import zstandard
from websockets.sync.client import connect


class PageClient:
    """One open page. ``parts`` are the components the server announced, by label, and ``seen``
    all messages.
    """

    def __init__(self, port: int, **options):
        self.socket = connect(
            f'ws://127.0.0.1:{port}',
            subprotocols=[f'viser-v{viser.__version__}'],
            max_size=None,
            compression=None,
            close_timeout=1.0,  # a server that is busy with a flood answers late
            **options,
        )
        self.parts, self.seen = {}, []
        # The server counts a client from its first camera message on.
        self.send(
            'ViewerCameraMessage',
            wxyz=(1.0, 0.0, 0.0, 0.0),
            position=(0.0, 0.0, 0.0),
            fov=1.0,
            near=0.1,
            far=10.0,
            image_height=100,
            image_width=100,
            look_at=(1.0, 0.0, 0.0),
            up_direction=(0.0, 0.0, 1.0),
        )

    def send(self, kind: str, **fields) -> None:
        self.socket.send(msgspec.msgpack.encode({'type': kind, **fields}))

    def receive(self, timeout=5.0) -> list[dict]:
        """The next messages; remembers components by label."""
        data = self.socket.recv(timeout)
        packed = int.from_bytes(data[8:16], 'little')
        inner = zstandard.ZstdDecompressor().decompress(
            data[16 : 16 + packed], max_output_size=int.from_bytes(data[:8], 'little')
        )
        messages = msgspec.msgpack.decode(inner, strict=False)['messages']
        self.seen += messages
        for message in messages:
            label = message.get('props', {}).get('label')
            if label:
                self.parts[label] = message
        return messages

    def until(self, label: str) -> dict:
        """The component of a label, once it was announced."""
        for _ in range(200):
            if label in self.parts:
                return self.parts[label]
            self.receive()
        raise AssertionError(f'{label} was not announced')

    def set(self, label: str, value) -> None:
        """What a browser sends when a person changes an input."""
        self.send('GuiUpdateMessage', uuid=self.until(label)['uuid'], updates={'value': value})

    def close(self) -> None:
        self.socket.close()
