"""Topics and services of our nodes, read from their sources."""

import re
from pathlib import Path

NODES = Path(__file__).parents[2] / 'specprune_ros' / 'nodes'


def names_of(node):
    """Topics and services that a node's source names: ``~/overlay/agent`` as /node/overlay/..."""
    files = {
        'specprune_node': (
            'policy_node/node',
            'policy_node/inputs',
            'policy_node/chunk_continuation',
        ),
        'chunk_executor': (
            'executor_node/node',
            'executor_node/arm_state',
            'executor_node/arm_ports',
            'executor_node/dry_run',
        ),
        'sim_arm': ('sim_arm_node',),
        'patch_cloud': ('patch_cloud_node',),
    }[node]
    text = ''.join((NODES / f'{file}.py').read_text() for file in files)
    text = re.sub(r'\{(DRY_RUN|TOPIC)\}', '~/dry_run', text)
    return {f'/{node}/{name}' for name in re.findall(r"'~/([a-z_/{}]+)'", text)}


def known():
    names = set()
    for node in ('specprune_node', 'chunk_executor', 'sim_arm', 'patch_cloud'):
        for name in names_of(node):
            names |= {name.replace('{camera}', camera) for camera in ('agent', 'wrist')}
    return names | {'/diagnostics', '/clock', '/rosout', '/parameter_events'}
