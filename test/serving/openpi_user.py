"""A script that knows openpi-client and nothing of this package: asks a server, prints JSON."""

import json
import sys

import numpy as np
from openpi_client import action_chunk_broker, image_tools
from openpi_client.websocket_client_policy import WebsocketClientPolicy

policy = WebsocketClientPolicy(sys.argv[1], int(sys.argv[2]), api_key=sys.argv[3])
images = np.random.default_rng(0).integers(0, 255, (2, 200, 320, 3), dtype=np.uint8)


def look():
    agent, wrist = (
        image_tools.convert_to_uint8(image_tools.resize_with_pad(image, 128, 128))
        for image in images
    )
    return {
        'observation/image': agent,
        'observation/wrist_image': wrist,
        'observation/state': np.zeros(8, np.float32),
        'prompt': 'lift the red cube',
    }


replies = [policy.infer(look()) for _ in range(3)]
try:
    policy.infer({**look(), 'observation/state': np.zeros(3)})
    refused = ''
except RuntimeError as error:
    refused = str(error)
broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=4)
rows = [broker.infer(look())['actions'].tolist() for _ in range(6)]
print(
    json.dumps(
        {
            'numpy': np.__version__,
            'metadata': sorted(policy.get_server_metadata()),
            'shapes': [list(reply['actions'].shape) for reply in replies],
            'first': replies[0]['actions'].tolist(),
            'timing': [sorted(reply['server_timing']) for reply in replies],
            'modes': [reply['specprune']['mode'] for reply in replies],
            'resets': [reply['specprune']['reset'] for reply in replies],
            'refused': refused,
            'rows': rows,
        }
    )
)
