# specprune_ros on the official ROS image:
#
#     docker build -t specprune_ros .
#     docker run --rm -it --net host --ipc host --gpus all specprune_ros \
#         ros2 launch specprune_ros specprune.launch.py --show-args
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}-ros-base
ARG ROS_DISTRO
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libegl1 libgl1 make python3-dev python3-venv \
        "ros-${ROS_DISTRO}-launch-pytest" "ros-${ROS_DISTRO}-pinocchio" "ros-${ROS_DISTRO}-rmw-fastrtps-cpp" \
        "ros-${ROS_DISTRO}-rosbag2-storage-mcap" \
    && rm -rf /var/lib/apt/lists/*

# As on any ROS host: what ROS lacks goes into .venv, the package is built by colcon.
WORKDIR /opt/specprune_ros
COPY . .
RUN source "/opt/ros/${ROS_DISTRO}/setup.bash" && make setup

ENTRYPOINT ["/bin/bash", "-c", "source /opt/ros/$ROS_DISTRO/setup.bash && . scripts/env.sh && exec \"$@\"", "--"]
CMD ["bash"]
