"""What the launch tests share: including a launch file, exit statuses, and a node that listens."""

import time
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
RECORDING = ROOT / 'specprune_ros' / 'sim' / 'recording'
# What `ros2 launch FILE NAME:=VALUE...` does, as a program.
RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [text.split(':=', 1) for text in sys.argv[2:]]
service = LaunchService(argv=sys.argv[2:])
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)]))
sys.exit(service.run())
"""


def need_launch_pytest():
    """Skip the calling file where launch_pytest cannot run, with the reason."""
    pytest.importorskip(
        'launch_pytest',
        reason='launch_pytest is not installed: it comes with a ROS host (ros-*-launch-pytest)',
    )
    # Releases before September 2026 look for what pytest 8.4 took away and fail in every test.
    import launch_pytest

    @launch_pytest.fixture
    def probe():
        pass

    plugin = (Path(launch_pytest.__file__).parent / 'plugin.py').read_text()
    if '._pytestfixturefunction' in plugin and not hasattr(probe, '_pytestfixturefunction'):
        pytest.skip(
            f'this launch_pytest does not work with pytest {pytest.__version__}: '
            "upgrade it, or use the distribution's own pytest",
            allow_module_level=True,
        )


def include(name, **arguments):
    """One of our launch files with its arguments."""
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(LAUNCH / name)),
        launch_arguments=[(key, str(value)) for key, value in arguments.items()],
    )


def cameras_and_arm(namespace=''):
    """The arm without images, and its cameras from the recording: runs without OpenGL."""
    import sys

    from launch_ros.actions import Node

    return [
        Node(
            package='specprune_ros',
            executable='sim_arm',
            name='sim_arm',
            namespace=namespace,
            parameters=[{'render': False}],
        ),
        Node(
            executable=sys.executable,
            arguments=['-m', 'specprune_ros.apps.image_playback'],
            name='play',
            namespace=namespace,
            exec_name='play',
            parameters=[{'recording': str(RECORDING)}],
        ),
    ]


def record_exits(into):
    """An action that writes each process's exit status into a dictionary, by name and number."""
    from launch.actions import RegisterEventHandler
    from launch.event_handlers import OnProcessExit

    def note(event, context):
        into[event.process_name] = event.returncode

    return RegisterEventHandler(OnProcessExit(on_exit=note))


class Listener:
    """A node beside the launch: what topics say, and calls to services."""

    def __init__(self, domain):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node('listener', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def hear(self, kind, topic):
        """A list that fills with (time of arrival, message)."""
        from specprune_ros.nodes.common.qos import every

        received = []
        self.node.create_subscription(
            kind, topic, lambda message: received.append((time.monotonic(), message)), every()
        )
        return received

    def spin(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def wait(self, condition, exits, seconds=60.0):
        """Whether the condition came true in time; a process that ended ends the waiting."""
        end = time.monotonic() + seconds
        while not condition() and not exits and time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.05)
        return bool(condition())

    def call(self, kind, service, request, seconds=90.0):
        client = self.node.create_client(kind, service)
        assert client.wait_for_service(timeout_sec=seconds), f'no service {service}'
        future = client.call_async(request)
        self.executor.spin_until_future_complete(future, timeout_sec=seconds)
        self.node.destroy_client(client)
        assert future.done(), f'{service} did not answer'
        return future.result()

    def state(self, node):
        from lifecycle_msgs.srv import GetState

        return self.call(GetState, f'{node}/get_state', GetState.Request()).current_state.label

    def get(self, node, *names):
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python

        request = GetParameters.Request(names=names)
        answer = self.call(GetParameters, f'{node}/get_parameters', request)
        return [parameter_value_to_python(value) for value in answer.values]

    def set(self, node, name, value):
        """(accepted, reason)"""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        result = self.call(SetParameters, f'{node}/set_parameters', request).results[0]
        return result.successful, result.reason


@contextmanager
def listening(domain):
    """A :class:`Listener` for as long as a test lasts."""
    listener = Listener(domain)
    try:
        yield listener
    finally:
        listener.close()
