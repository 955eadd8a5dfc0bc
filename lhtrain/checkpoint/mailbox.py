"""Messages between the saving threads of the ranks, through the store of the rendezvous.

Collectives are not used: one that times out because of a slow disk breaks its process group, and so every
later save. A late message has no such effect.
"""

import json
import time
import uuid
import zlib
from base64 import b64decode, b64encode
from typing import Any

import torch.distributed as dist

from lhtrain.distributed.world import World

LOOK = (0.005, 0.5)  # seconds between two checks for a message: first and largest


class Mailbox:
    """Messages by key. Creating it is a collective; with a single rank it does nothing."""

    def __init__(self, world: World):
        self._meeting, self._store = world.meeting, None
        if world.meeting is not None:
            # The store may outlive a run: in a sweep, or when torchrun restarts the ranks.
            unique = world.on_main(lambda: uuid.uuid4().hex)
            self._store = dist.PrefixStore(f"saver/{unique}", world.meeting.store)

    def post(self, key: str, message: Any) -> None:
        """Store a message, plain data as JSON has it, under `key`."""
        if self._store is not None:
            self._store.set(key, b64encode(zlib.compress(json.dumps(message).encode())).decode())

    def read(self, key: str) -> Any:
        """Wait for the message under `key` and return it. Raises PeerFailed: another rank has failed."""
        assert self._store is not None and self._meeting is not None
        pause = LOOK[0]
        while not self._store.check([key]):
            self._meeting.check()
            time.sleep(pause)
            pause = min(2 * pause, LOOK[1])
        return json.loads(zlib.decompress(b64decode(self._store.get(key))))

    def remove(self, key: str) -> None:
        if self._store is not None:
            self._store.delete_key(key)
