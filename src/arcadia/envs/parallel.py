"""Vector environments side by side, each stepped by a thread of its own."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from arcadia.types import Actions, BoolArray

Array = NDArray[Any]
Info = dict[str, Array]


class Emulators(Protocol):
    """What ale-py's vector environment offers: `step` in two halves, between which a thread works."""

    num_envs: int

    def reset(self, *, seed: int | None = None) -> tuple[Array, Info]:
        """Start a game in each emulator; their seeds are consecutive."""

    def send(self, actions: Actions) -> None:
        """Begin a step."""

    def recv(self) -> tuple[Array, Array, BoolArray, BoolArray, Info]:
        """End it."""

    def close(self) -> None:
        """Release them."""


class _Step(NamedTuple):
    observation: Array
    reward: Array
    terminated: BoolArray
    truncated: BoolArray
    info: Info


class ParallelEmulators:
    """Groups of emulators, one after the other as one vector environment.

    It plays the games that one group with the same seed would. A group of which nobody wants any emulator any more
    stands still: its pictures stay, it gives no reward and nothing ends.
    """

    def __init__(self, groups: Sequence[Emulators]) -> None:
        self._groups = groups
        self.num_envs = sum(group.num_envs for group in groups)
        ends = np.cumsum([group.num_envs for group in groups]).tolist()
        self._slices = [slice(end - group.num_envs, end) for group, end in zip(groups, ends, strict=True)]

    def reset(self, *, seed: int | None = None) -> tuple[Array, Info]:
        self._dismissed = np.zeros(self.num_envs, np.bool_)
        started = [
            group.reset(seed=None if seed is None else seed + part.start)
            for group, part in zip(self._groups, self._slices, strict=True)
        ]
        nothing = [np.zeros(group.num_envs) for group in self._groups]
        self._last = [
            _Step(observation, none, none > 0, none > 0, info)
            for (observation, info), none in zip(started, nothing, strict=True)
        ]
        whole = self._whole()
        return whole.observation, whole.info

    def dismiss(self, index: int) -> None:
        """Until the next reset, nobody wants emulator `index` any more."""
        self._dismissed[index] = True

    def step(self, actions: Actions) -> _Step:
        playing = [number for number, part in enumerate(self._slices) if not self._dismissed[part].all()]
        for number in playing:
            self._groups[number].send(actions[self._slices[number]])
        for number, last in enumerate(self._last):
            if number in playing:
                self._last[number] = _Step(*self._groups[number].recv())
            else:
                none = np.zeros_like(last.reward)
                self._last[number] = last._replace(reward=none, terminated=none > 0, truncated=none > 0)
        return self._whole()

    def _whole(self) -> _Step:
        *arrays, infos = zip(*self._last, strict=True)
        observation, reward, terminated, truncated = map(np.concatenate, arrays)
        info = {name: np.concatenate([info[name] for info in infos]) for name in infos[0]}
        return _Step(observation, reward, terminated, truncated, info)

    def close(self) -> None:
        for group in self._groups:
            group.close()
