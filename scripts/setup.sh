#!/usr/bin/env bash
# Bring .venv and install/ up to date. Does nothing, in a fraction of a second, when they are.
#
#     scripts/setup.sh
#
# On a host whose ROS 2 is sourced, uses that ROS; anywhere else, ROS 2 from wheels.
# PYTHON names the interpreter to build .venv from (3.11 to 3.14; with a sourced ROS, its python3).
# TORCH says which PyTorch: cpu, cuda, system (the one that PYTHON has already), none, or auto (the
# default): cuda where there is an NVIDIA GPU, else cpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
stamps=$venv/.stamps

say() { printf '[setup] %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo none; }
have() { command -v "$1" >/dev/null 2>&1; }

# ---------------------------------------------------------------------------- system packages

can_install() { [ "$(id -u)" = 0 ] && have apt-get; }

# Install Debian packages as root, else name them and the command. Fails where they are not there after it.
apt_install() { # apt_install WHY PACKAGE...
  local why=$1; shift
  if can_install; then
    say "$why: installing $* with apt-get"
    export DEBIAN_FRONTEND=noninteractive
    if apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1; then return 0; fi
    apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@" >/dev/null && return 0
    say "apt-get could not install $*"
    return 1
  fi
  say "$why. On Debian or Ubuntu:"
  say "    sudo apt-get install $*"
  return 1
}

# To build the messages, in C and C++, with Python's headers.
check_compiler() { # check_compiler PYTHON
  if ! have "${CC:-cc}" || ! have "${CXX:-c++}"; then
    apt_install "No C and C++ compiler" gcc g++ libc6-dev || exit 1
  fi
  have make || apt_install "No make" make || exit 1
  local header
  header=$("$1" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h
  [ -f "$header" ] || apt_install "No $header" "python$(version_of "$1")-dev" || exit 1
}

python_fits() { # the wheels of constraints.txt are for these; a ROS host decides for itself
  if [ "$mode" = host ]; then have "$1" && "$1" -c '' 2>/dev/null; return; fi
  have "$1" && "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if python_fits "$name"; then echo "$name"; return; fi
  done
  if [ -n "${PYTHON:-}" ]; then die "PYTHON=$PYTHON is not Python 3.11 to 3.14"; fi
  apt_install "No Python 3.11 to 3.14 here" python3 python3-venv python3-dev || exit 1
  python_fits python3 || die "python3 is $(python3 -V 2>&1), which ROS 2 and PyTorch have no wheels for: put 3.11 to 3.14 on PATH"
  echo python3
}

# ---------------------------------------------------------------------------- which ROS

mode=wheels
if [ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ] && have ros2; then mode=host; fi

# What .venv depends on: change any of it and the installation is looked at again.
install_key() {
  { echo "$mode ${ROS_DISTRO:-} $root $(torch_choice)"
    "$venv/bin/python" -V
    cat constraints.txt requirements/*.txt scripts/setup.sh
  } 2>/dev/null | sha256sum | cut -d' ' -f1
}

# What install/ depends on: the messages and the build files by content; our Python, launch and
# config files by name only, because they are linked, not copied.
build_key() {
  local folders=(specprune_ros config scripts)
  if [ -d launch ]; then folders+=(launch); fi
  { cat "$stamps/installed" package.xml CMakeLists.txt msg/*.msg
    find "${folders[@]}" -type f ! -name '*.pyc' | LC_ALL=C sort
  } | sha256sum | cut -d' ' -f1
}

stamped() { [ -f "$stamps/$1" ] && [ "$(cat "$stamps/$1")" = "$2" ]; }

# ---------------------------------------------------------------------------- .venv

make_venv() {
  if [ -e "$venv" ] && [ ! -e "$stamps/venv" ]; then
    die ".venv was not made by this script: move it away, or set it up again with \`make distclean setup\`"
  fi
  local python
  python=$(find_python)
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    apt_install "Python has no venv module" "python$(version_of "$python")-venv" || exit 1
  fi
  check_compiler "$python"
  say "making .venv with $("$python" -V)"
  rm -rf "$venv" build install log
  mkdir -p "$stamps" && : >"$stamps/venv"
  local flags=()
  if [ "$mode" = host ] || [ "$(torch_choice)" = system ]; then flags=(--system-site-packages); fi
  "$python" -m venv "${flags[@]}" "$venv"
  echo "$mode $root" >"$stamps/venv"
}

# Which PyTorch .venv gets. What was installed stays until TORCH says otherwise.
torch_choice() {
  local choice=${TORCH:-auto}
  case $choice in
    cpu | cuda | system | none) ;;
    auto)
      choice=$(cat "$stamps/torch" 2>/dev/null || true)
      if [ -z "$choice" ]; then
        choice=cpu
        if [ -e /dev/nvidiactl ] || [ -e /dev/nvhost-gpu ] || [ -e /dev/dxg ]; then choice=cuda; fi
      fi ;;
    *) die "TORCH=$choice is none of auto, cpu, cuda, system, none" ;;
  esac
  echo "$choice"
}

# PyTorch before the rest, so that the rest is content with it. An index that has the CPU build
# names it 2.13.0+cpu; one that has not gives the larger build, which runs on a CPU as well.
install_torch() { # install_torch CONSTRAINTS
  local choice version
  forget_unfinished
  choice=$(torch_choice)
  version=$(sed -n 's/^torch==//p' constraints.txt)
  if stamped torch "$choice" && installed_version torch | grep -qx "${version//./\\.}\(+.*\)\?"; then return; fi
  case $choice in
    cpu)
      pip_install "torch==$version+cpu" -c "$1" 2>/dev/null || {
        say "this package index has no CPU build of PyTorch $version: taking the one with CUDA libraries (3 GB);"
        say "to avoid it, give pip PyTorch's own CPU index (PIP_EXTRA_INDEX_URL, see docs/how-to/install.md) or TORCH=system"
        pip_install "torch==$version" -c "$1"
      } ;;
    cuda) pip_install "torch==$version" -c "$1" ;;
    system)
      "$venv/bin/python" -c 'import torch' 2>/dev/null \
        || die "TORCH=system: $("$venv/bin/python" -V) has no torch that imports; install it there, or take TORCH=cpu" ;;
    none) ;;
  esac
  echo "$choice" >"$stamps/torch"
}

# The requirements without PyTorch where it is not to be installed.
requirements_without_torch() { # requirements_without_torch FILE...
  case $(torch_choice) in
    system | none) grep -hvE '^(torch|transformers)([^a-z0-9-]|$)' "$@" >"$venv/requirements.txt" ;;
    *) cat "$@" >"$venv/requirements.txt" ;;
  esac
}

installed_version() {
  "$venv/bin/python" -c 'import sys, importlib.metadata as m; print(m.version(sys.argv[1]))' "$1" 2>/dev/null
}

# A pip that was killed leaves packages without the record of their files, which the next one takes for
# installed.
forget_unfinished() {
  local info
  for info in "$venv"/lib/python3.*/site-packages/*.dist-info; do
    if [ -d "$info" ] && [ ! -f "$info/RECORD" ]; then rm -rf "$info"; fi
  done
}

pip_install() {
  local flags=(--disable-pip-version-check --no-input)
  [ -t 2 ] || flags+=(-qq)
  "$venv/bin/python" -m pip install "${flags[@]}" "$@"
}

install_wheels() {
  say "installing what constraints.txt pins (the first time takes minutes: PyTorch and ROS 2 are large)"
  install_torch constraints.txt
  requirements_without_torch requirements/{build,ros,run,sim,view,test,docs}.txt
  pip_install -c constraints.txt -r "$venv/requirements.txt"
  # The message wheels export the include folders of the machine that built them.
  local include
  include=$("$venv/bin/python" -c 'import sysconfig, numpy; print(sysconfig.get_paths()["include"] + ";" + numpy.get_include())')
  grep -rlE '"/opt/python/' --include='*Export*.cmake' "$venv/share" \
    | xargs -r sed -i -E "s#(INTERFACE_INCLUDE_DIRECTORIES) \"/opt/python/[^\"]*\"#\1 \"$include\"#" || true
  # colcon warns about a prefix without this file.
  : >"$venv/local_setup.sh"
}

# With a ROS host, its own NumPy stays, because its messages are compiled against it, and its pytest,
# because launch_pytest follows it.
install_host() {
  local python=$venv/bin/python numpy pytest
  if ! "$python" -c 'import rclpy' 2>/dev/null; then
    die "ros2 is sourced (ROS_DISTRO=$ROS_DISTRO) but rclpy does not import with $("$python" -V): set PYTHON to the interpreter of your ROS"
  fi
  numpy=$("$python" -c 'import numpy; print(numpy.__version__)')
  "$python" -c 'import pinocchio' 2>/dev/null || apt_install "No Pinocchio" "ros-$ROS_DISTRO-pinocchio" || exit 1
  # The wheel needs NumPy 2, Jazzy has 1.26.
  "$python" -c 'import cv2' 2>/dev/null || apt_install "No OpenCV" python3-opencv || exit 1
  grep -vE '^(numpy|pin|pytest|pytest-rerunfailures|packaging|pyyaml|ros-.*)==' constraints.txt >"$venv/constraints.txt"
  echo "numpy==$numpy" >>"$venv/constraints.txt"
  if pytest=$("$python" -c "import pytest; print(pytest.__version__)" 2>/dev/null); then
    echo "pytest==$pytest" >>"$venv/constraints.txt"
  fi
  local files=(requirements/{run,sim,view,test,docs}.txt)
  have colcon || files+=(requirements/build.txt)
  requirements_without_torch "${files[@]}"
  sed -i -E '/^(pin|opencv-python-headless)$/d' "$venv/requirements.txt"
  say "installing what your ROS $ROS_DISTRO lacks (NumPy stays at $numpy)"
  install_torch "$venv/constraints.txt"
  pip_install -c "$venv/constraints.txt" -r "$venv/requirements.txt"
}

# The `specprune` command, with the environment it needs and whatever the shell has.
write_command() {
  cat >"$venv/bin/specprune" <<EOF
#!/usr/bin/env bash
. "$root/scripts/env.sh"
exec python "$root/scripts/specprune" "\$@"
EOF
  chmod +x "$venv/bin/specprune"
}

# ---------------------------------------------------------------------------- renderer

# Try what the simulated arm will try; bring what is missing, once.
find_renderer() {
  local try='from specprune_ros.sim.arm import render_backend as r; error = r.prepare(); exit(error and str(error))' reason
  if reason=$("$venv/bin/python" -c "$try" 2>&1); then echo found >"$stamps/renderer"; return; fi
  if [ ! -e "$stamps/renderer" ] && can_install \
    && apt_install "No off-screen OpenGL" libegl1 libegl-mesa0 libgl1-mesa-dri libgles2 libopengl0 libgl1 \
    && "$venv/bin/python" -c "$try" 2>/dev/null; then
    echo found >"$stamps/renderer"; return
  fi
  : >"$stamps/renderer"
  say "$reason"
  say "going on without: the demo takes its images from the recorded bag"
}

# ---------------------------------------------------------------------------- main

# One at a time: `make demo` beside `make test` waits.
if have flock; then exec 9<Makefile; flock 9; fi

if ! stamped venv "$mode $root" || ! "$venv/bin/python" -V >/dev/null 2>&1; then make_venv
elif [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$(version_of "$venv/bin/python")" ]; then make_venv; fi
key=$(install_key)
if ! stamped installed "$key"; then
  rm -f "$stamps/installed"
  "install_$mode"
  write_command
  find_renderer
  echo "$key" >"$stamps/installed"
fi
[ -s "$stamps/renderer" ] || find_renderer

key=$(build_key)
if ! stamped built "$key"; then
  rm -f "$stamps/built"
  check_compiler "$venv/bin/python"
  say "colcon build"
  (
    . scripts/env.sh
    colcon --log-base "$root/log" build --symlink-install --event-handlers console_direct- console_stderr+ \
      --cmake-args -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$venv/bin/python" >&2
  )
  echo "$key" >"$stamps/built"
fi
