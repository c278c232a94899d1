"""The SROS2 policy: what it becomes with the real tool, and a graph that enforces it.

Needs sros2; the last test also a Fast DDS that was built with security, which the wheels' is not.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from ros_processes import Process, new_domain

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
POLICY = ROOT / 'config' / 'sros2' / 'policy.xml'
ENCLAVES = [e.get('path') for e in ElementTree.parse(POLICY).iter('enclave')]
# Says which nodes it receives of on /diagnostics, until both were received or time is up.
HEAR = """
import sys, time
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
rclpy.init(args=['--ros-args', *sys.argv[2:]])
node = rclpy.create_node('operator', start_parameter_services=False)
received = set()
node.create_subscription(
    DiagnosticArray, '/diagnostics', lambda m: received.update(s.name for s in m.status), 10)
end = time.monotonic() + float(sys.argv[1])
while len(received) < 2 and time.monotonic() < end:
    rclpy.spin_once(node, timeout_sec=0.1)
print(len(received))
if '--enclave' in sys.argv:
    from geometry_msgs.msg import TwistStamped
    try:
        node.create_publisher(TwistStamped, '/sim_arm/cmd_twist', 1)
    except Exception:
        print('refused')
"""


@pytest.fixture(scope='module')
def secured(tmp_path_factory):
    """A keystore with every enclave of the policy, for a domain of its own; as an environment."""
    keystore = pytest.importorskip(
        'sros2.keystore', reason='sros2 is not installed: it comes with a ROS host (ros-*-sros2)'
    )
    folder, domain = tmp_path_factory.mktemp('keys'), new_domain()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_DOMAIN_ID', str(domain))
        keystore.create_keystore(folder)
        for path in ENCLAVES:
            keystore.create_enclave(folder, path)
            keystore.create_permission(folder, path, POLICY)
    return {
        **os.environ,
        'ROS_DOMAIN_ID': str(domain),
        'ROS_SECURITY_KEYSTORE': str(folder),
        'ROS_SECURITY_ENABLE': 'true',
        'ROS_SECURITY_STRATEGY': 'Enforce',
    }


def test_the_policy_becomes_permissions_by_which_only_the_executor_commands(secured):
    commanders = set()
    for path in ENCLAVES:
        folder = Path(secured['ROS_SECURITY_KEYSTORE']) / 'enclaves' / path.lstrip('/')
        assert (folder / 'permissions.p7s').stat().st_size > 1000  # signed
        tree = ElementTree.parse(folder / 'permissions.xml')
        domains = {element.text for element in tree.iter('id')}
        assert domains == {secured['ROS_DOMAIN_ID']}
        assert {element.text for element in tree.iter('default')} == {'DENY'}
        for publish in tree.iter('publish'):
            topics = {element.text for element in publish.iter('topic')}
            if 'rt/sim_arm/cmd_twist' in topics or 'rt/*' in topics:
                commanders.add(path)
    assert commanders == {'/specprune/executor'}


def test_every_service_that_a_node_starts_by_itself_is_allowed(ros):
    """With Enforce a node that may not offer one does not start; rclpy gives all of them this."""
    from specprune_ros.nodes.executor_node.supervisor import SUFFIX, Setup, make_node

    lacking = set()
    for profile in ElementTree.parse(POLICY).iter('profile'):
        name = profile.get('node')
        replied = {s.text for s in profile.iterfind('services[@reply]/service')}
        if not replied & {'~/get_type_description', f'/{name}_*/get_type_description'}:
            lacking.add(name)
    ros.init()
    node = make_node(Setup('chunk_executor', '/', '', '', {}, '', 1.0, 0))
    try:
        assert lacking == {'chunk_executor' + SUFFIX} == {node.get_name()}
        assert not list(node.services)
    finally:
        node.destroy_node()
        ros.try_shutdown()


def test_with_enforce_the_graph_comes_up_and_an_outsider_hears_nothing(secured, tmp_path):
    def run(program, *arguments, environment=secured):
        command = [sys.executable, '-c', program, *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120
        )

    enclave = ('--enclave', '/specprune/operator')
    tried = run(HEAR, '0', *enclave)
    if "doesn't have the security libraries" in tried.stderr:
        pytest.skip('this Fast DDS was built without security')
    assert tried.returncode == 0, tried.stderr
    domain = int(secured['ROS_DOMAIN_ID'])
    with pytest.MonkeyPatch.context() as patch:
        for name in secured:
            patch.setenv(name, secured[name])
        nodes = [
            Process(
                name, ['--ros-args', '--enclave', f'/specprune/{leaf}'], domain, tmp_path / name
            )
            for name, leaf in (('specprune_node', 'policy'), ('chunk_executor', 'executor'))
        ]
    try:
        inside = run(HEAR, '60', *enclave)
        assert inside.stdout.split() == ['2', 'refused'], inside.stderr + nodes[0].text()
        outside = run(HEAR, '5', environment={**secured, 'ROS_SECURITY_ENABLE': 'false'})
        assert outside.stdout.split() == ['0'], outside.stderr
        assert all(node.alive() for node in nodes)
    finally:
        for node in nodes:
            node.stop()
