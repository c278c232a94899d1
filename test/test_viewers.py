"""The SROS2 policy and the security page name things that exist."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from topic_names import known

ROOT = Path(__file__).parents[1]
NODES = ROOT / 'specprune_ros' / 'nodes'


def test_the_sros2_policy_names_topics_that_exist_and_lets_one_node_and_its_supervisor_command():
    tree = ElementTree.parse(ROOT / 'config' / 'sros2' / 'policy.xml')
    topics, commanders = known(), []
    lifecycle = re.compile(
        r'.*/(transition_event|change_state|get_\w+|describe_parameters|list_parameters|set_parameters\w*)$'
    )
    for profile in tree.iter('profile'):
        node = profile.get('node')
        for group in (*profile.iter('topics'), *profile.iter('services')):
            for entry in group:
                name = entry.text.replace('~', f'/{node}').removesuffix('/compressed')
                assert name in topics or lifecycle.match(name), name
                if name == '/sim_arm/cmd_twist' and group.get('publish') == 'ALLOW':
                    commanders.append(node)
    assert commanders == ['chunk_executor', 'chunk_executor_supervisor']


@pytest.mark.parametrize(
    'banned',
    [
        r'\bshell=True',
        r'trust_remote_code=True',
        r'\beval\(["\']',
        r'allow_pickle=True',
        r'yaml\.load\((?!text, _Plain\))',
        r'weights_only=False',
    ],
)
def test_what_the_security_page_rules_out_is_nowhere(banned):
    for path in (ROOT / 'specprune_ros').rglob('*.py'):
        assert not re.search(banned, path.read_text()), path
