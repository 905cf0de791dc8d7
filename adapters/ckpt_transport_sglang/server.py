"""Calls a running SGLang through its HTTP interface."""

from __future__ import annotations

import json
from http import HTTPStatus

from ckpt_transport import EngineError
from ckpt_transport.spi import NO_PAUSE, HttpEngine
from ckpt_transport_sglang.frontend import BY_OTHERS, FRONT, HELD, YES
from ckpt_transport_sglang.pause_owners import ABORT, IN_PLACE
from ckpt_transport_sglang.plugin import CALL

RETRACT = "retract"
MODES = {"keep": IN_PLACE, RETRACT: RETRACT, ABORT: ABORT}
"""SGLang's words for what becomes of running requests, by ours."""
CALL_SECONDS = 60.0
PLUGIN_CURE = "install ckpt-transport into the environment of SGLang, which finds it by itself, and start it again"


class SglangServer(HttpEngine):
    """A SGLang at ``url``, as ``http://127.0.0.1:30000``; see :class:`~ckpt_transport.spi.HttpEngine`.

    The key in ``api_key_file`` is that of SGLang's ``--admin-api-key``, or of ``--api-key`` where it has only that.
    """

    kind = "SGLang"
    health_route = "/ready"
    route_hint = "is it SGLang, of a release that docs/how-to/update-sglang-live.md names?"
    pause_modes = (*MODES, NO_PAUSE)
    _world_size = 0

    def _why_unhealthy(self, status: int) -> str:
        """One that is paused serves, as far as an update is concerned; one that still starts does not."""
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            return "" if self._describe()["paused"] else f"it still starts, or is paused by '{ABORT}'{self._through}"
        return super()._why_unhealthy(status)

    def _describe(self, timeout: float = CALL_SECONDS) -> dict[str, str]:
        """What the first rank says of the engine. Routes of SGLang that say it want the key of users, not of admins."""
        return self.call_ranks("describe", timeout)[0]

    def world_size(self) -> int:
        """How many ranks it has, as of the last time that they were asked."""
        return self._world_size or int(self._describe()["world_size"])

    def weight_version(self) -> str:
        return self._describe()["version"]

    def is_paused(self) -> bool:
        return self._ask("GET", self.health_route).status_code != HTTPStatus.OK

    @property
    def resume_hint(self) -> str:
        return f"POST {{}} to {self.url}/continue_generation when it may serve"

    def pause(self, mode: str, timeout: float) -> None:
        """Hold requests. SGLang answers before its schedulers have heard of it, so these are asked."""
        if self.tells_pauses_apart:
            described = self._call_front("pause", timeout, mode=MODES[mode])
            if self.paused_by_others:
                return
        else:
            for each in (MODES[mode],) if mode != ABORT else (ABORT, IN_PLACE):
                self._call("POST", "/pause_generation", json={"mode": each}, timeout=timeout)
            described = self._describe(timeout)
        if not described["paused"]:
            raise EngineError(f"{self.url} was asked to pause, and somebody has ended that; update again")

    def resume(self) -> None:
        if self.tells_pauses_apart:
            self._call_front("resume")
        else:
            self._call("POST", "/continue_generation", json={"torch_empty_cache": False})

    def renew(self, version: str) -> bool:
        return self._serve(version, "") if self.tells_pauses_apart else super().renew(version)

    def renew_and_resume(self, version: str) -> bool:
        """As :meth:`renew`, and serve requests again when all of it is done; whether they were held until then.

        Raises:
            EngineError: a rank could not do its part, and requests stay held.
        """
        if self.tells_pauses_apart:
            return self._serve(version, YES)
        held = self.renew(version)
        self.resume()
        return held

    def _serve(self, version: str, resume: str) -> bool:
        return bool(self._call_front("serve", version=version, resume=resume)[HELD])

    def _call_front(self, name: str, timeout: float = CALL_SECONDS, **given: str) -> dict[str, str]:
        """Call what the module ``frontend`` answers."""
        told = self.call_ranks(name, timeout, **given)[0]
        self.paused_by_others = bool(told[BY_OTHERS])
        return told

    def label(self, version: str) -> None:
        self._call("POST", "/update_weight_version", json={"new_version": version, "abort_all_requests": False})

    def reset_caches(self) -> None:
        """Drop what was computed with old weights. Running requests compute it again."""
        self.call_ranks("drop_caches")

    def attach(self, host: str) -> list[str]:
        """Have every rank open a sink that is reached from ``host``; their addresses by rank."""
        answers = self.call_ranks("attach", host=host, engine=self.url)
        self._world_size, self.tells_pauses_apart = int(answers[0]["world_size"]), bool(answers[0].get(FRONT))
        self.paused_by_others = False  # of a server that was started anew nobody knows; the next call says it
        return [answer["address"] for answer in answers]

    def call_ranks(self, name: str, timeout: float = CALL_SECONDS, **given: str) -> list[dict[str, str]]:
        """Call every rank of the engine; the answers by rank.

        Raises:
            EngineError: a rank could not do it, or this adapter is not installed beside SGLang.
        """
        asked = {"action": CALL + json.dumps({"call": name, **given})}
        try:
            said = self._call("POST", "/weights_checker", json=asked, timeout=timeout)["message"]
        except EngineError as error:
            if "Unsupported action" in str(error):
                raise EngineError(f"{self.url} cannot be updated: {PLUGIN_CURE}") from error
            raise
        answers: list[dict[str, str]] = json.loads(said)
        for rank, each in enumerate(answers):
            if each["error"]:
                raise EngineError(f"rank {rank} of {self.url}: {each['error']}")
        return answers
