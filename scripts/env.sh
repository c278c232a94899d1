# The environment of every process of this checkout. Source it from bash, zsh or sh:
#
#     . scripts/env.sh
#
# `make` and the `specprune` command in .venv/bin source it too. What you have set yourself (domain
# id, discovery range, RMW, profiles file) is left alone.

# Where this checkout is. A plain sh cannot tell the path of a sourced file: source it from the root.
if [ -n "${BASH_SOURCE:-}" ]; then
  SPECPRUNE_ROOT=$(cd "$(dirname "${BASH_SOURCE}")/.." && pwd)
elif [ -n "${ZSH_VERSION:-}" ]; then
  eval 'SPECPRUNE_ROOT=$(cd "$(dirname "${(%):-%x}")/.." && pwd)'
else
  SPECPRUNE_ROOT=${SPECPRUNE_ROOT:-$(pwd)}
fi
if [ ! -f "$SPECPRUNE_ROOT/scripts/env.sh" ]; then
  echo "scripts/env.sh: $SPECPRUNE_ROOT is not the checkout; cd to it first" >&2
  return 1
fi
export SPECPRUNE_ROOT

# colcon's scripts read variables that may not be set.
case $- in *u*) _specprune_nounset=1; set +u ;; *) _specprune_nounset= ;; esac

# Put a folder in front of a path-like variable, once.
_specprune_prepend() {
  eval "_specprune_value=\${$1:-}"
  case ":$_specprune_value:" in
    *":$2:"*) ;;
    *) export "$1=$2${_specprune_value:+:$_specprune_value}" ;;
  esac
}

export VIRTUAL_ENV="$SPECPRUNE_ROOT/.venv"
_specprune_prepend PATH "$VIRTUAL_ENV/bin"
unset PYTHONHOME

# ROS 2: the host's where one is sourced, else the wheels, whose prefix is the virtual environment.
if [ -f "$VIRTUAL_ENV/lib/librcl.so" ]; then
  _specprune_prepend AMENT_PREFIX_PATH "$VIRTUAL_ENV"
  _specprune_prepend CMAKE_PREFIX_PATH "$VIRTUAL_ENV"
  # The wheels restart every Python process once to set this; done here, they need not.
  for _specprune_value in "$VIRTUAL_ENV"/lib/python3.*/site-packages/ros_*.libs; do
    _specprune_prepend LD_LIBRARY_PATH "$_specprune_value"
  done
  _specprune_prepend LD_LIBRARY_PATH "$VIRTUAL_ENV/lib"
  export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
fi

# Our messages, as colcon installed them.
if [ -f "$SPECPRUNE_ROOT/install/local_setup.sh" ]; then
  COLCON_CURRENT_PREFIX="$SPECPRUNE_ROOT/install"
  . "$SPECPRUNE_ROOT/install/local_setup.sh"
  unset COLCON_CURRENT_PREFIX
fi
# The checkout's Python comes before the installed copy, so that an edit needs no build.
_specprune_prepend PYTHONPATH "$SPECPRUNE_ROOT"

# DDS: large images need the profile, and a demo must not talk to a neighbour's arm.
export RMW_IMPLEMENTATION="${RMW_IMPLEMENTATION:-rmw_fastrtps_cpp}"
export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
_specprune_value=$SPECPRUNE_ROOT/config/fastdds.xml
if [ "$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 {print $2}')" -lt 262144 ] 2>/dev/null; then
  _specprune_value=$SPECPRUNE_ROOT/config/fastdds_small.xml
fi
case ${ROS_DISTRO:-} in # Fast DDS 2 reads one name; Fast DDS 3 reads the other and warns about the first
  humble | jazzy) export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$_specprune_value}" ;;
  *) export FASTDDS_DEFAULT_PROFILES_FILE="${FASTDDS_DEFAULT_PROFILES_FILE:-$_specprune_value}" ;;
esac

# Completion of `specprune` by Tab, in a shell somebody types into.
case $-${BASH_VERSION:+bash} in
  *i*bash) eval "$(register-python-argcomplete specprune 2>/dev/null)" ;;
esac

[ -z "$_specprune_nounset" ] || set -u
unset _specprune_value _specprune_nounset
unset -f _specprune_prepend
