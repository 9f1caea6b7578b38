"""The service ~/load of a node that uses a checkpoint: another one in its place, without a missed tick."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from rclpy.task import Future
from std_srvs.srv import Trigger

from sage_ros.nodes.lifecycle import EXPECTED_ERRORS, SageNode
from sage_ros.paths import checkpoint_path
from sage_ros.policy.checkpoint import Checkpoint, load_checkpoint


class HotSwap:
    """Loads what the node's ``checkpoint`` by now names (a link, say) in a thread, while the node works.

    ``take`` is called in that thread with what was loaded, warms it up, and puts it in place by one assignment. One
    that does not fit the running pipeline is refused in words. They are loaded for ``device``, with ``threads``.
    """

    def __init__(
        self, node: SageNode, path: str, take: Callable[[Checkpoint], None], device: str = "cpu", threads: int = 1
    ) -> None:
        self._node, self._path, self._take, self._device, self._threads = node, path, take, device, threads
        self._busy = threading.Lock()
        self.checkpoint = load_checkpoint(checkpoint_path(path), device)
        take(self.checkpoint)
        node.serve(Trigger, "~/load", self._on_load)

    @property
    def name(self) -> str:
        return self.checkpoint.folder.name

    async def _on_load(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answers once the new one is in use; frames are answered meanwhile."""
        done: Future = Future()
        threading.Thread(target=self._load, args=(done,), name="load", daemon=True).start()
        response.success, response.message = await done
        return response

    def _load(self, done: Future) -> None:
        with self._busy:
            try:
                torch.set_num_threads(self._threads)  # is each thread's own
                found = load_checkpoint(checkpoint_path(self._path), self._device)
                found.check_replaces(self.checkpoint)
                self._take(found)
            except EXPECTED_ERRORS as error:
                self._node.get_logger().error(f"{self.name} stays: {error}")
                return done.set_result((False, f"{self.name} stays: {error}"))
            before, self.checkpoint = self.name, found
        self._node.get_logger().info(f"{self.name} takes the place of {before}")
        done.set_result((True, f"{self.name} takes the place of {before}"))
