"""``specprune view``: the page of ``viewer_node`` on running nodes, or on a recording."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from sensor_msgs.msg import CompressedImage, Image

from specprune_ros.apps.bag import BagError, BagReader
from specprune_ros.bench.host_info import as_json
from specprune_ros.nodes.common.lifecycle import run
from specprune_ros.nodes.common.remapping import (
    COMPRESSED,
    load_profile,
    profile_path,
    ros_arguments,
)
from specprune_ros.nodes.common.time import SECOND_NS
from specprune_ros.nodes.viewer_node.access import Access, serve
from specprune_ros.nodes.viewer_node.feed import Feed, Source, arm_node, sources
from specprune_ros.nodes.viewer_node.node import ViewerNode, package_folders
from specprune_ros.nodes.viewer_node.page import Page
from specprune_ros.robot.profile import Profile

LOOK_BACK = 2 * SECOND_NS  # ns before the cursor in which images are searched for
LARGE = ('image ', 'depth ')  # roles whose messages are too large to keep all of them
FRAME = 0.1  # s between two frames while playing


@dataclass(frozen=True)
class ViewOptions:
    """Options of ``specprune view``; see its help."""

    robot: str
    robot_sn: str
    host: str
    port: int
    policy: str
    executor: str
    arm: str
    image_transport: str
    bag: Path | None
    json: Path | None = None

    def opened(self, address: str) -> None:
        """Write where the page is."""
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(as_json({'url': address, 'bag': self.bag and str(self.bag)}))


def run_view(options: ViewOptions) -> int:
    """Show the page until Ctrl-C. Returns the exit status."""
    if options.bag is not None:
        return _view_bag(options, options.bag)
    parameters = {
        'profile': str(profile_path(options.robot)),
        'robot_sn': options.robot_sn,
        'host': options.host,
        'port': options.port,
        'policy': options.policy,
        'executor': options.executor,
        'arm': options.arm,
        'image_transport': options.image_transport,
    }
    return run(partial(ViewerNode, options.opened), ros_arguments({}, parameters))


def _view_bag(options: ViewOptions, path: Path) -> int:
    console = Console()
    profile = load_profile(options.robot, options.robot_sn, options.policy.rpartition('/')[0])
    try:
        with BagReader(path) as bag:
            access = Access(options.host)
            server = serve(options.host, options.port, access)
            recording = Recording(bag, profile, options.policy, options.arm)
            page = Page(server, f'{profile.robot}: {path.name}')
            cursor = Cursor(server, page, recording, profile, options)
            address = access.address(options.host, server.get_port())
            options.opened(address)
            console.print(
                f'{path}, {bag.duration:.1f} s: {address}',
                highlight=False,
                soft_wrap=True,
            )
            cursor.run()
    except BagError as error:
        console.print(f'[red]{error}[/]', highlight=False)
        return 2
    return 0


class Recording:
    """A recording, ready to be viewed from any moment.

    Everything but the images is read at once; images, of depth too, are read where they are
    needed. Raises :class:`BagError` where the recording has nothing to show.
    """

    def __init__(self, bag: BagReader, profile: Profile, policy: str, arm: str) -> None:
        arm = arm_node(arm, profile, policy.rpartition('/')[0])
        there = bag.topics()
        self._bag = bag
        self._images: dict[str, tuple[str, type]] = {}
        small: dict[str, Source] = {}
        for source in sources(profile, policy, arm):
            if source.role.startswith('image '):
                bare = source.topic.removesuffix(COMPRESSED)
                for topic, kind in ((bare + COMPRESSED, CompressedImage), (bare, Image)):
                    if topic in there:
                        self._images[topic] = source.role, kind
                        break
            elif source.topic in there and source.role.startswith(LARGE):
                self._images[source.topic] = source.role, source.kind
            elif source.topic in there:
                small[source.topic] = source
        if not (small or self._images):
            raise BagError(
                f'{bag.path}: nothing of {profile.robot} in it; it has {", ".join(sorted(there))}'
            )
        kinds = {topic: source.kind for topic, source in small.items()}
        self._latched = {source.role for source in small.values() if source.latched}
        self._messages: dict[str, list[Any]] = {source.role: [] for source in small.values()}
        self._stamps: dict[str, list[int]] = {role: [] for role in self._messages}
        for recorded in bag.messages(kinds):
            role = small[recorded.topic].role
            self._messages[role].append(recorded.message)
            self._stamps[role].append(recorded.stamp_ns)
        self.start_ns, self.end_ns = bag.start_ns, bag.start_ns + round(bag.duration * SECOND_NS)

    @property
    def first_query_ns(self) -> int:
        """When the first statistics came; the beginning where none did."""
        stamps = self._stamps.get('stats')
        return stamps[0] if stamps else self.start_ns

    def until(self, moment_ns: int, since_ns: int | None = None) -> Iterable[tuple[str, Any]]:
        """Roles and messages that make the image at a moment, oldest first for each role.

        Of statistics and diagnostics all, of everything else the newest; with ``since_ns`` only
        what came after that.
        """
        for role, stamps in self._stamps.items():
            end = bisect.bisect_right(stamps, moment_ns)
            begin = 0 if since_ns is None else bisect.bisect_right(stamps, since_ns)
            if end == 0 and since_ns is None and role in self._latched:
                end = 1  # said before the recording began, and received a little later
            if role not in ('stats', 'diagnostics'):
                begin = max(begin, end - 1)
            for message in self._messages[role][begin:end]:
                yield role, message
        begin_ns = moment_ns - LOOK_BACK if since_ns is None else since_ns
        kinds = {topic: kind for topic, (_, kind) in self._images.items()}
        for recorded in self._bag.messages(kinds, begin_ns, moment_ns + 1):
            yield self._images[recorded.topic][0], recorded.message


class Cursor:
    """The moment that the page shows, with a slider for it."""

    def __init__(
        self,
        server: Any,
        page: Page,
        recording: Recording,
        profile: Profile,
        options: ViewOptions,
    ) -> None:
        self._recording = recording
        self._feed = Feed(page, profile, options.policy, options.executor, package_folders())
        self._changed = threading.Event()
        seconds = (recording.end_ns - recording.start_ns) / SECOND_NS
        self._slider = page.add_time(
            seconds, (recording.first_query_ns - recording.start_ns) / SECOND_NS
        )
        self._play = page.add_play()
        self._slider.on_update(self._on_update)
        self._play.on_update(self._on_update)
        self._shown_ns: int | None = None
        self._seconds = seconds

    def _on_update(self, event: Any) -> None:
        # Not for what `run` sets itself, or playing would not pause between two frames.
        if event.client is not None:
            self._changed.set()

    def run(self) -> None:
        """Follow the slider, and move it while playing. Ends with ``KeyboardInterrupt``."""
        self._changed.set()
        begin = time.monotonic()
        while True:
            self._changed.wait(FRAME if self._play.value else None)
            self._changed.clear()
            now = time.monotonic()
            if self._play.value:
                at = self._slider.value + min(now - begin, 1.0)
                if at >= self._seconds:
                    at, self._play.value = self._seconds, False
                self._slider.value = at
            begin = now
            self.show(self._recording.start_ns + round(self._slider.value * SECOND_NS))

    def show(self, moment_ns: int) -> None:
        """Draw the page as it was at a moment."""
        if moment_ns == self._shown_ns:
            return
        since = self._shown_ns
        if since is None or not since < moment_ns <= since + LOOK_BACK:
            self._feed.forget()
            since = None
        for role, message in self._recording.until(moment_ns, since):
            self._feed.take(role, message)
        self._feed.draw_motion()
        self._feed.draw_images()
        self._feed.draw_text()
        self._shown_ns = moment_ns
