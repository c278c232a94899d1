"""A lifecycle node that can bring itself up, and the main loop every node here runs in."""

from __future__ import annotations

import ctypes
import itertools
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import rclpy
import yaml
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from specprune_ros.nodes.common.compat import lifecycle_state
from specprune_ros.nodes.common.parameters import declare_read_only
from specprune_ros.nodes.common.parent_process import parent_gone

# How often the loop looks whether a signal requested it to end, in seconds.
SIGNAL_POLL = 0.1
BAD_ARGUMENTS = 2  # exit status
# A terminal that closes sends the last of them.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class AutoLifecycleNode(LifecycleNode):
    """A lifecycle node whose parameter ``autostart`` (default true) configures and activates it.

    Subclasses fill :meth:`setup`, :meth:`start`, :meth:`stop` and :meth:`teardown`. An exception
    in the first two becomes a log entry that says what to change and a failed transition, never a
    dead node.
    """

    def __init__(self, name: str, parameter_overrides: list[Parameter] | None = None) -> None:
        super().__init__(name, parameter_overrides=parameter_overrides or [])
        declare_read_only(
            self,
            'autostart',
            True,
            'Configure and activate at start; false leaves both to a lifecycle manager.',
        )
        self.last_error = ''
        self._failing = False
        self.end_requested: Callable[[], bool] = lambda: False

    def setup(self) -> None:
        """Build what a configured node has. Raise to refuse."""

    def start(self) -> None:
        """Begin to work. Raise to refuse."""

    def stop(self) -> None:
        """Stop working and forget what was remembered."""

    def teardown(self) -> None:
        """Undo :meth:`setup`; must also work half-way through."""

    def autostart(self) -> None:
        """Configure and activate if the parameter says so."""
        if not self.get_parameter('autostart').value:
            return
        configured = self.trigger_configure() == TransitionCallbackReturn.SUCCESS
        if configured and not self.end_requested():
            self.trigger_activate()

    def fail(self, reason: str) -> None:
        """Leave ``active`` or ``inactive`` for ``unconfigured``: what the node works with is
        gone. For the executor's thread, between callbacks.

        A lifecycle node has no transition of its own for that: its error path begins in another
        transition whose callback fails. So deactivating (or cleaning up) is begun and answers with
        an error, and whoever listens sees error processing on the way.
        """
        self.last_error = reason
        self.get_logger().error(reason)
        state = lifecycle_state(self)
        leave = {'active': self.trigger_deactivate, 'inactive': self.trigger_cleanup}.get(state)
        if leave is None:
            return
        self._failing = True
        try:
            leave()
        finally:
            self._failing = False

    def on_configure(self, state: State) -> TransitionCallbackReturn:
        """Lifecycle callback: unconfigured to inactive."""
        if not self._attempt('configure', self.setup):
            self.teardown()
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: State) -> TransitionCallbackReturn:
        """Lifecycle callback: inactive to active."""
        result = super().on_activate(state)
        if not self._attempt('activate', self.start):
            self.stop()
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        return result

    def on_deactivate(self, state: State) -> TransitionCallbackReturn:
        """Lifecycle callback: active to inactive."""
        self.stop()
        return self._answer(super().on_deactivate(state))

    def on_cleanup(self, state: State) -> TransitionCallbackReturn:
        """Lifecycle callback: inactive to unconfigured."""
        self.teardown()
        return self._answer(super().on_cleanup(state))

    def on_shutdown(self, state: State) -> TransitionCallbackReturn:
        """Lifecycle callback: any state to finalized."""
        self.stop()
        self.teardown()
        return super().on_shutdown(state)

    def on_error(self, state: State) -> TransitionCallbackReturn:
        """Lifecycle callback: after an error, back to unconfigured, to be tried again."""
        self.stop()
        self.teardown()
        return TransitionCallbackReturn.SUCCESS

    def _answer(self, result: TransitionCallbackReturn) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.ERROR if self._failing else result

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # whatever a model, a file or a URDF raises: survive it
            self.last_error = f'{what}: {error}'
            self.get_logger().error(f'cannot {what}: {error}')
            return False
        self.last_error = ''
        return True


def wrong_file(arguments: Sequence[str]) -> str:
    """What is wrong with a parameter file that was given, with its name: rclpy names none."""
    for word, file in itertools.pairwise(arguments):
        if word != '--params-file':
            continue
        try:
            tree = yaml.safe_load(Path(file).read_text(encoding='utf-8'))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            return f'parameter file {file}: {error}'
        if not isinstance(tree, dict) or not all(isinstance(v, dict) for v in tree.values()):
            return f'parameter file {file}: no node names with ros__parameters below them'
    return ''


def run(make_node: Callable[[], AutoLifecycleNode], arguments: Sequence[str] | None = None) -> int:
    """Run one node until something ends it: SIGINT, SIGTERM or SIGHUP, or the death of the
    process that started it. Returns the process's exit status.

    ``arguments`` are those for ROS, without the program's name; ``None`` takes the command line's.

    The signals are handled here and not by rclpy, so that the context is still alive when the node
    stops its arm.
    """
    given = sys.argv[1:] if arguments is None else arguments
    wrong = wrong_file(given)
    if wrong:
        print(wrong, file=sys.stderr)
        return BAD_ARGUMENTS
    rclpy.init(
        args=sys.argv if arguments is None else ['', *arguments],
        signal_handler_options=SignalHandlerOptions.NO,
    )
    requested: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        requested.append(number)

    for number in ENDING:
        signal.signal(number, on_signal)
    executor = SingleThreadedExecutor()
    try:
        node = make_node()
    except ParameterException as error:
        # A value given at start that has the wrong type or lies out of range.
        get_logger('specprune_ros').fatal(f'{error}')
        rclpy.try_shutdown()
        return BAD_ARGUMENTS
    node.end_requested = lambda: bool(requested) or parent_gone()
    executor.add_node(node)
    try:
        node.autostart()
        while not node.end_requested() and rclpy.ok():
            executor.spin_once(timeout_sec=SIGNAL_POLL)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        # A second signal while stopping must not tear the stop action apart.
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        node.stop()
        node.teardown()
        executor.remove_node(node)
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


def find_trim() -> Callable[[], None]:
    """``malloc_trim`` of glibc, or nothing to call where the C library has none."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda: None
    trim.argtypes = [ctypes.c_size_t]
    return lambda: trim(0)
