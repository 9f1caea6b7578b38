"""Choosing an OpenGL for MuJoCo, which decides once, when it is first imported."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import sys
import weakref
from functools import cache
from types import ModuleType
from typing import Any

INSTALL = "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0   (or: apt-get install libosmesa6)"


_open: weakref.WeakSet[Any] = weakref.WeakSet()  # renderers that hold an OpenGL context


class RenderError(RuntimeError):
    """No picture can be drawn: names the missing system packages."""


def choose_backend() -> str:
    """The value for MUJOCO_GL: the user's own; none where there is a screen; EGL, else OSMesa, else ``disable``."""
    chosen = os.environ.get("MUJOCO_GL", "")
    if chosen or os.environ.get("DISPLAY") or sys.platform != "linux":
        return chosen
    if _loads("libEGL.so.1") and _loads("libOpenGL.so.0", "libGL.so.1", "libGLESv2.so.2"):
        return "egl"
    return "osmesa" if _loads("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so") else "disable"


def import_mujoco() -> ModuleType:
    """MuJoCo, set up to render without a screen. Physics needs no OpenGL.

    Raises ImportError, with the command that installs it, where MuJoCo is missing, and RenderError where the
    user's own MUJOCO_GL keeps it from being imported.
    """
    if "mujoco" not in sys.modules:
        os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer: more threads take cores, not less time
        if backend := choose_backend():
            os.environ["MUJOCO_GL"] = backend
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mujoco"):
            raise ImportError('the simulated world needs MuJoCo: pip install "sage_ros[sim]"') from error
        raise
    except Exception as error:  # PyOpenGL raises its own kinds while it looks for the library
        backend = os.environ.get("MUJOCO_GL", "")
        raise RenderError(f"MuJoCo cannot use MUJOCO_GL={backend} ({error}): unset it, or {INSTALL}") from error


def make_renderer(model: Any, size: int) -> Any:
    """A MuJoCo renderer of ``size`` x ``size`` pixels, for :func:`close_renderer` to close.

    Raises RenderError where OpenGL cannot be used.
    """
    mujoco = import_mujoco()
    backend = os.environ.get("MUJOCO_GL") or "unset"
    if not hasattr(mujoco, "GLContext"):
        raise RenderError(f"rendering is off or found no OpenGL library (MUJOCO_GL={backend}): {INSTALL}")
    try:
        renderer = mujoco.Renderer(model, size, size)
    except Exception as error:  # each backend raises its own kind
        advice = f"set MUJOCO_GL=egl, and if that fails too {INSTALL}"
        raise RenderError(f"OpenGL could not be started (MUJOCO_GL={backend}; {error}): {advice}") from error
    _open.add(renderer)
    _close_at_exit()
    return renderer


def close_renderer(renderer: Any) -> None:
    """Give the renderer's OpenGL context back. Raises RenderError in another thread than the one that rendered."""
    if context := renderer._gl_context:
        try:
            context.make_current()  # MuJoCo deletes its objects in the current context, be it another renderer's
        except Exception as error:  # each backend raises its own kind
            raise RenderError(f"close a world in the thread that rendered it ({error})") from error
    renderer.close()


@cache
def _close_at_exit() -> None:
    """Close what is still open before MuJoCo takes EGL down, after which closing raises.

    MuJoCo asks for that at exit with its first context, and the last to ask comes first: so call this after it.
    """
    atexit.register(lambda: [renderer.close() for renderer in tuple(_open)])


def _loads(*names: str) -> bool:
    """Whether one of these shared libraries can be loaded."""
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
